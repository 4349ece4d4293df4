//! The outside of an Istio object, around its spec.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

/// An object of a custom kind. The fields that nobody reads are there so that they are known.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Resource<S> {
    #[serde(rename = "apiVersion")]
    _api_version: Value,
    #[serde(rename = "kind")]
    _kind: Value,
    #[serde(default)]
    pub(super) metadata: ObjectMeta,
    pub(super) spec: Option<S>,
    #[serde(default, rename = "status")]
    _status: Value,
}
