//! `--keep`: the mesh stays up, and one is told how to use it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result};
use sluice_tests::{Pod, kept};

use super::servers::HTTP_PORT;
use super::shop::{CART_VIP, CATALOG_VIP, Shop};

/// Prints what there is, and waits for Ctrl-C, upon which the supervisor's end removes it all.
pub(crate) fn until_interrupted(shop: &Shop) -> Result<()> {
    let dir = shop.topology.run().dir();
    let pods = [
        &shop.web,
        &shop.intruder,
        &shop.catalog,
        &shop.cart,
        &shop.mail,
        &shop.legacy_web,
        &shop.legacy_catalog,
    ];
    let script = write_script(shop, &pods)?;
    let enter = script.display();
    println!("── the mesh is up. In another terminal, as root:");
    println!("  {enter} shop/web curl http://{CATALOG_VIP}/");
    println!("  {enter} shop/web redis-cli -h {CART_VIP} PING");
    println!(
        "  {enter} legacy/web curl http://{}:{HTTP_PORT}/",
        shop.catalog.v4()
    );
    println!("  {enter}            lists the pods");
    println!(
        "configuration, in force as soon as it is saved: {}",
        shop.mesh.config().path().display()
    );
    kept::list(&shop.mesh, dir)?;
    println!(
        "connections, live, on all nodes: cargo xtask trace flows\n  \
         (while several demos are kept: cargo xtask trace --demo {} flows)",
        dir.display()
    );
    println!("logs: {}", dir.join("logs").display());
    for node in shop.topology.nodes() {
        println!(
            "node {}: nsenter --net={} curl http://127.0.0.1:15000/config_dump",
            node.name(),
            node.netns.path().display()
        );
    }
    println!("Ctrl-C removes all of it.");
    loop {
        thread::park();
    }
}

/// A script that runs a command in a pod: in its cgroup first, where connections are captured,
/// then in its network namespace.
fn write_script(shop: &Shop, pods: &[&Pod]) -> Result<PathBuf> {
    let path = shop.topology.run().dir().join("in");
    let mut text = "#!/bin/sh\n# Runs a command in a pod of the demo: in NAMESPACE/NAME COMMAND…\n\
                    case \"$1\" in\n"
        .to_owned();
    let mut list = String::new();
    for pod in pods {
        text += &format!(
            "{}/{}) cgroup={} netns={} ;;\n",
            pod.namespace(),
            pod.name(),
            pod.cgroup.path().display(),
            pod.netns.path().display()
        );
        list += &format!(
            "{}/{} on node {}: {} {}\\n",
            pod.namespace(),
            pod.name(),
            pod.node(),
            pod.v4(),
            pod.v6()
        );
    }
    text += &format!(
        "*) printf '{list}'; exit 2 ;;\nesac\nshift\necho 0 > \"$cgroup/cgroup.procs\" &&\n\
         exec nsenter --net=\"$netns\" -- \"$@\"\n"
    );
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(&path)
        .with_context(|| format!("creating {}", path.display()))?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
