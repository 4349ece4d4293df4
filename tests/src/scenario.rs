//! The frame of a test: a topology, a mesh on it, and all logs when it fails.

use std::panic::{self, AssertUnwindSafe};

use anyhow::{Result, anyhow};

use crate::binaries::Binaries;
use crate::mesh::{Mesh, Options};
use crate::run::Run;
use crate::topology::{Pod, PodSpec, Topology};

/// A mesh on a topology of its own.
#[derive(Debug)]
pub struct Scenario {
    // Dropped in this order: the mesh ends politely before its machines vanish.
    pub mesh: Mesh,
    pub topology: Topology,
}

impl Scenario {
    /// A pod that the mesh knows of. Its labels are `app: <name>` only.
    pub fn pod(&self, node: &str, namespace: &str, name: &str) -> Result<Pod> {
        self.pod_as(node, namespace, name, name)
    }

    /// The same with a service account that is not named like the pod.
    pub fn pod_as(&self, node: &str, namespace: &str, name: &str, account: &str) -> Result<Pod> {
        let spec = PodSpec {
            namespace,
            name,
            service_account: account,
        };
        let pod = self.topology.node(node).pod(spec)?;
        self.mesh.apply_pod(&pod, &[])?;
        Ok(pod)
    }

    /// A pod whose enrolment has been waited for; its namespace must be labelled already.
    pub fn enrolled_pod(&self, node: &str, namespace: &str, name: &str) -> Result<Pod> {
        let pod = self.pod(node, namespace, name)?;
        self.mesh.wait_until_enrolled(&pod)?;
        Ok(pod)
    }
}

/// Runs a test in a mesh of two nodes, `a` and `b`.
///
/// # Panics
/// When the test fails: with its error and the ends of all logs.
pub fn scenario(test: impl FnOnce(&mut Scenario) -> Result<()>) {
    scenario_with(&["a", "b"], Options::default(), test);
}

/// Runs a test in a mesh of these nodes. Two threads carry traffic on each, whatever the machine has, so
/// that what threads could do to each other shows.
///
/// # Panics
/// When the test fails: with its error and the ends of all logs.
pub fn scenario_with(
    nodes: &[&str],
    mut options: Options,
    test: impl FnOnce(&mut Scenario) -> Result<()>,
) {
    options.ztunnel.push("--threads=2".to_owned());
    let attempt = || -> Result<()> {
        let run = Run::start(Binaries::locate()?)?;
        let topology = Topology::new(&run, nodes)?;
        let mesh = Mesh::start_with(&topology, options)?;
        let mut scenario = Scenario { mesh, topology };
        // A failed assertion is a panic: its message has been printed, the logs have not.
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| test(&mut scenario)))
            .unwrap_or_else(|_| Err(anyhow!("the test panicked, see above")));
        outcome.map_err(|error| scenario.mesh.explain(error))
    };
    if let Err(error) = attempt() {
        panic!("{error:#}");
    }
}
