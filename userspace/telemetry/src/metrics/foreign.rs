//! Values that are kept elsewhere, as in the kernel, and read at every scrape.

use std::{borrow::Cow, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

/// A value under its labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub labels: Vec<(&'static str, Cow<'static, str>)>,
    pub value: f64,
}

impl Reading {
    /// A value without labels.
    pub fn new(value: f64) -> Self {
        Self {
            labels: Vec::new(),
            value,
        }
    }

    /// Adds a label.
    #[must_use]
    pub fn with(mut self, label: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.labels.push((label, value.into()));
        self
    }
}

/// What a value that is read may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows. The encoding adds `_total` to the name.
    Counter,
    Gauge,
}

/// A metric that is read at every scrape.
pub(super) struct Foreign {
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) read: Box<dyn Fn() -> Vec<Reading> + Send + Sync>,
}

impl Collector for Foreign {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let readings = (self.read)();
        if readings.is_empty() {
            return Ok(());
        }
        let kind = match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
        };
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        for Reading { labels, value } in &readings {
            if labels.is_empty() {
                self.sample(&mut metric, *value)?;
                continue;
            }
            let labels = labels.iter().map(|(name, value)| (*name, &**value));
            let labels: Vec<_> = labels.collect();
            self.sample(&mut metric.encode_family(&labels)?, *value)?;
        }
        Ok(())
    }
}

impl Foreign {
    fn sample(&self, encoder: &mut MetricEncoder<'_>, value: f64) -> fmt::Result {
        let whole = whole(value);
        match (self.kind, whole) {
            (Kind::Counter, Some(whole)) => {
                encoder.encode_counter::<NoLabelSet, _, u64>(&whole, None)
            }
            (Kind::Counter, None) => encoder.encode_counter::<NoLabelSet, _, u64>(&value, None),
            (Kind::Gauge, Some(whole)) => encoder.encode_gauge(&whole),
            (Kind::Gauge, None) => encoder.encode_gauge(&value),
        }
    }
}

/// A number without a fraction is shown as one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked before"
)]
fn whole(value: f64) -> Option<u64> {
    /// All integers up to here are exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    ((0.0..EXACT).contains(&value) && value.fract() == 0.0).then_some(value as u64)
}

impl fmt::Debug for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Foreign")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
