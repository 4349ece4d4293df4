//! Collects what is wrong with one object while it is read.

use std::net::IpAddr;

use sluice_model::Name;

use crate::{Code, Diagnostic, Origin, Severity};

/// The findings about one object.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    origin: &'a Origin,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(origin: &'a Origin) -> Self {
        Self {
            origin,
            diagnostics: Vec::new(),
        }
    }

    pub(crate) fn namespace(&self) -> Name {
        self.origin.object.namespace.clone()
    }

    pub(crate) fn name(&self) -> Name {
        self.origin.object.name.clone()
    }

    /// The object cannot be applied.
    pub(crate) fn error(
        &mut self,
        code: Code,
        field: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.tell(Severity::Error, code, field.into(), message.into());
    }

    /// The object is applied, but not as meant.
    pub(crate) fn warning(
        &mut self,
        code: Code,
        field: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.tell(Severity::Warning, code, field.into(), message.into());
    }

    /// Nothing is wrong, but something was left out.
    pub(crate) fn info(
        &mut self,
        code: Code,
        field: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.tell(Severity::Info, code, field.into(), message.into());
    }

    fn tell(&mut self, severity: Severity, code: Code, field: String, message: String) {
        let diagnostic = self.origin.diagnostic(severity, code, field, message);
        self.diagnostics.push(diagnostic);
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.diagnostics
            .iter()
            .any(|d| d.severity == Severity::Error)
    }

    pub(crate) fn into_diagnostics(self) -> Vec<Diagnostic> {
        self.diagnostics
    }

    /// A port; anything but 1 to 65535 is an error and `None`.
    pub(crate) fn port(&mut self, field: impl Into<String>, port: i32) -> Option<u16> {
        let valid = u16::try_from(port).ok().filter(|port| *port > 0);
        if valid.is_none() {
            self.error(
                Code::InvalidValue,
                field,
                format!("{port} is not a port; ports are 1 to 65535"),
            );
        }
        valid
    }

    /// The address of a workload or service, in canonical form.
    pub(crate) fn address(&mut self, field: impl Into<String>, text: &str) -> Option<IpAddr> {
        let Ok(ip) = text.parse::<IpAddr>() else {
            self.error(
                Code::InvalidValue,
                field,
                format!("{text:?} is not an IP address"),
            );
            return None;
        };
        let ip = ip.to_canonical();
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
            self.error(
                Code::InvalidValue,
                field,
                format!("{text} cannot be the address of anything in a mesh"),
            );
            return None;
        }
        Some(ip)
    }

    /// A name that becomes part of an identity or a host name.
    pub(crate) fn dns_name(&mut self, field: impl Into<String>, text: &str) -> Name {
        if !is_dns_name(text) {
            self.error(
                Code::InvalidValue,
                field,
                format!(
                    "{text:?} is not a name; names are lower-case letters, digits, '-' and '.', \
                     and begin and end with a letter or digit"
                ),
            );
        }
        text.into()
    }
}

/// A DNS subdomain as Kubernetes demands of names (RFC 1123).
pub(crate) fn is_dns_name(text: &str) -> bool {
    let edge = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    text.len() <= 253
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-.".contains(c))
}
