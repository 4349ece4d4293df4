//! The shop: pods on two nodes, real servers in them, and services in front.

use anyhow::{Context, Result};
use sluice_tests::podtool::{self, Serve};
use sluice_tests::process::Process;
use sluice_tests::{Mesh, Pod, PodSpec, Topology};

use super::servers::{self, HTTP_PORT, REDIS_PORT, SMTP_PORT};

/// In the mesh.
pub(crate) const SHOP: &str = "shop";
/// Not in the mesh, to begin with.
pub(crate) const LEGACY: &str = "legacy";
/// Service addresses: only the mesh knows what is behind them.
pub(crate) const CATALOG_VIP: &str = "10.96.0.10";
pub(crate) const CART_VIP: &str = "10.96.0.11";
pub(crate) const MAIL_VIP: &str = "10.96.0.12";
pub(crate) const MAIL_PORT: u16 = 25;
/// Of the echo servers, in both namespaces.
pub(crate) const ECHO_PORT: u16 = 7000;

/// The open shop. Clients are on node a, servers on node b.
#[derive(Debug)]
pub(crate) struct Shop {
    pub(crate) mail_server: Process,
    _servers: Vec<Process>,
    pub(crate) web: Pod,
    pub(crate) intruder: Pod,
    pub(crate) catalog: Pod,
    pub(crate) cart: Pod,
    pub(crate) mail: Pod,
    pub(crate) legacy_web: Pod,
    pub(crate) legacy_catalog: Pod,
    // Servers end before their pods, pods before the mesh, the mesh before its machines.
    pub(crate) mesh: Mesh,
    pub(crate) topology: Topology,
}

impl Shop {
    pub(crate) fn open(topology: Topology, mesh: Mesh) -> Result<Self> {
        let pod = |node: &str, namespace: &str, name: &str| -> Result<Pod> {
            let spec = PodSpec {
                namespace,
                name,
                service_account: name,
            };
            let pod = topology.node(node).pod(spec)?;
            mesh.apply_pod(&pod, &[])?;
            Ok(pod)
        };
        mesh.apply_namespace(SHOP, Some("ambient"))?;
        mesh.apply_namespace(LEGACY, None)?;
        let web = pod("a", SHOP, "web")?;
        let intruder = pod("a", SHOP, "intruder")?;
        let catalog = pod("b", SHOP, "catalog")?;
        let cart = pod("b", SHOP, "cart")?;
        let mail = pod("b", SHOP, "mail")?;
        let legacy_web = pod("a", LEGACY, "web")?;
        let legacy_catalog = pod("b", LEGACY, "catalog")?;
        mesh.apply_service(SHOP, "catalog", CATALOG_VIP, &[(80, HTTP_PORT)])?;
        mesh.apply_service(SHOP, "cart", CART_VIP, &[(REDIS_PORT, REDIS_PORT)])?;
        mesh.apply_service(SHOP, "mail", MAIL_VIP, &[(MAIL_PORT, SMTP_PORT)])?;

        let echo = format!("[::]:{ECHO_PORT}");
        let mail_server = servers::smtp(&mail)?;
        let servers = vec![
            servers::nginx(&catalog, "shop-catalog")?,
            servers::redis(&cart)?,
            servers::nginx(&legacy_catalog, "legacy-catalog")?,
            podtool::serve(&catalog, "echo-shop", Serve::Echo, &echo)?,
            podtool::serve(&legacy_catalog, "echo-legacy", Serve::Echo, &echo)?,
        ];
        for pod in [&web, &intruder, &catalog, &cart, &mail] {
            mesh.wait_until_enrolled(pod)
                .map_err(|error| mesh.explain(error))
                .with_context(|| {
                    format!(
                        "pod {}/{} does not become part of the mesh",
                        SHOP,
                        pod.name()
                    )
                })?;
        }
        Ok(Self {
            mail_server,
            _servers: servers,
            web,
            intruder,
            catalog,
            cart,
            mail,
            legacy_web,
            legacy_catalog,
            mesh,
            topology,
        })
    }
}
