//! Values that are kept elsewhere, as in the kernel.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

/// The values of one label, each with its count.
type Read = Box<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>;

/// A counter that is read at every scrape.
pub(super) struct ForeignCounter {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) label: &'static str,
    pub(super) read: Read,
}

impl Collector for ForeignCounter {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric =
            encoder.encode_descriptor(self.name, self.help, None, MetricType::Counter)?;
        for (value, count) in (self.read)() {
            metric
                .encode_family(&[(self.label, value)])?
                .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }
}

/// A gauge that is read at every scrape, and may be absent.
pub(super) struct ForeignGauge {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) read: Box<dyn Fn() -> Option<f64> + Send + Sync>,
}

impl Collector for ForeignGauge {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(value) = (self.read)() else {
            return Ok(());
        };
        encoder
            .encode_descriptor(self.name, self.help, None, MetricType::Gauge)?
            .encode_gauge(&value)
    }
}

impl fmt::Debug for ForeignGauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignGauge")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ForeignCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignCounter")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
