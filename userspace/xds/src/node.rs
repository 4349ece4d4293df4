//! How a ztunnel introduces itself to a control plane.

use std::{collections::BTreeMap, net::IpAddr};

use prost_types::{Struct, Value, value::Kind};
use sluice_proto::discovery;

/// This ztunnel, as a control plane knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its own address.
    pub ip: IpAddr,
    /// Its pod, or another name that is unique in its namespace.
    pub name: String,
    pub namespace: String,
    /// The Kubernetes node that it serves.
    pub node_name: String,
    /// The cluster that it is of; empty when the control plane knows one only.
    pub cluster: String,
    /// More to tell, by name.
    pub metadata: BTreeMap<String, String>,
}

impl Node {
    /// The id on the wire, `ztunnel~IP~POD.NAMESPACE~NAMESPACE.svc.cluster.local`.
    pub fn id(&self) -> String {
        let Self {
            ip,
            name,
            namespace,
            ..
        } = self;
        format!("ztunnel~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local")
    }
}

impl From<&Node> for discovery::Node {
    fn from(node: &Node) -> Self {
        let own = [
            ("NAME", node.name.clone()),
            ("NAMESPACE", node.namespace.clone()),
            ("INSTANCE_IPS", node.ip.to_string()),
            ("NODE_NAME", node.node_name.clone()),
            ("CLUSTER_ID", node.cluster.clone()),
        ];
        let own = own.map(|(key, value)| (key.to_owned(), value));
        let text = |text: String| Value {
            kind: Some(Kind::StringValue(text)),
        };
        let fields = node
            .metadata
            .clone()
            .into_iter()
            .chain(own)
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key, text(value)));
        Self {
            id: node.id(),
            metadata: Some(Struct {
                fields: fields.collect(),
            }),
            user_agent_name: "sluice".to_owned(),
            ..Self::default()
        }
    }
}
