//! What a broker has written down of its work.

use std::{collections::HashMap, fs, path::Path};

use anyhow::Context as _;
use sluice_kernel::verify::Ledger;

/// Reads the ledger of a broker.
///
/// # Errors
/// When there is none, or it is another version's.
pub(super) fn read(run_dir: &Path) -> anyhow::Result<Ledger> {
    let path = run_dir.join(Ledger::FILE);
    let text = fs::read(&path).with_context(|| {
        format!(
            "cannot read {}; does a ztunnel run here, with this --run-dir?",
            path.display()
        )
    })?;
    serde_json::from_slice(&text).with_context(|| {
        format!(
            "{} is not understood; is it another version's?",
            path.display()
        )
    })
}

/// The path of the map that marks the ztunnel's own sockets.
pub(super) fn proxies(ledger: &Ledger) -> Option<&Path> {
    let mut paths = ledger.expected.maps.iter().map(|map| &*map.path);
    paths.find(|path| path.ends_with("PROXY"))
}

/// The pods' names, by the cookies of their network namespaces.
pub(super) fn names(ledger: &Ledger) -> HashMap<u64, String> {
    let name = |pod: &sluice_kernel::verify::LedgerPod| {
        (pod.cookie, format!("{}/{}", pod.namespace, pod.name))
    };
    ledger.pods.iter().map(name).collect()
}
