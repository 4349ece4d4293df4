//! The service that several topics ask for: `catalog` of the namespace `shop`.

use anyhow::Result;
use sluice_tests::objects;
use sluice_tests::scenario::Scenario;

/// Its addresses, one of each family.
pub(crate) const VIPS: [&str; 2] = ["10.96.0.1", "fd96::1"];

/// Declares it: port 80 leads to port 8080 of the pods with the label `app: catalog`.
pub(crate) fn declare(s: &Scenario) -> Result<()> {
    let ports = [(80, "8080")];
    let text = objects::service_selecting("shop", "catalog", &VIPS, ("app", "catalog"), &ports);
    s.mesh.config().apply("service", &text)
}
