//! The kinds of mistakes: a stable name for each, by which it can be searched and explained.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

/// Declares the codes. The doc comment of each is what [`Code::explanation`] returns.
macro_rules! codes {
    ($($(#[doc = $line:literal])+ $name:ident,)+) => {
        /// What kind of mistake a [`crate::Diagnostic`] is about.
        ///
        /// The names are part of the interface: they are never changed, and a new one is for a new
        /// kind of mistake, not for a new field.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $($(#[doc = $line])+ $name,)+
        }

        impl Code {
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name as it is displayed and serialized.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }

            fn doc(self) -> &'static [&'static str] {
                match self {
                    $(Self::$name => &[$($line),+],)+
                }
            }
        }
    };
}

codes! {
    /// A file or directory cannot be read: its permissions, its size, or bytes that are not UTF-8.
    /// Every object that was read from it before stays in force. Mend the file, or remove it.
    UnreadableFile,
    /// The text is not YAML, or breaks a limit on depth or size, so that nothing of this document
    /// can be read. Objects that were in force stay so; other documents of the file are read.
    /// Look at the line that is named and at the one before it: indentation, quotes, brackets.
    InvalidYaml,
    /// A document does not say which object it is: it needs `apiVersion`, `kind` and
    /// `metadata.name`, and a List needs `items`. It is not applied.
    NotAnObject,
    /// No API of that group has a kind of this name; most likely it is misspelt. The object is not
    /// applied.
    UnknownKind,
    /// The kind exists, but not in this `apiVersion`. The object is not applied. Use one of the
    /// versions that the message names.
    UnknownVersion,
    /// Other meshes act on an object of this kind, and Sluice cannot yet: the object has no effect.
    /// Do not rely on it for security.
    UnsupportedKind,
    /// An object of this kind is none of the mesh's business. It is left out, and nothing is wrong.
    UnusedKind,
    /// The object has a field that its kind does not have; most likely it is misspelt, or stands at
    /// another depth. The object is not applied, because what its author meant would be missing.
    UnknownField,
    /// A field that the object cannot do without is missing or empty. The object is not applied.
    MissingField,
    /// A field has a value that it cannot have: another type, a word that is not known, a port,
    /// address, name or pattern that is not well formed, or an empty list where leaving the field
    /// out would mean something else. The object is not applied.
    InvalidValue,
    /// Two fields, each valid, contradict each other, or exclude each other. The object is not
    /// applied. Decide for one of them.
    ConflictingFields,
    /// The same object is given more than once. The version already in force counts, or else the
    /// first by path; this one does not. Remove one of them.
    DuplicateObject,
    /// A label of the mesh has no effect: its value is not known, or it asks for something that
    /// Sluice does not do. It is taken as absent.
    IgnoredLabel,
    /// No Namespace of this name is given; most likely it is misspelt. A pod in it is not applied.
    /// A policy is, but a namespace that does not exist matches no peer and holds no workload.
    UnknownNamespace,
    /// A policy names a service account that no ServiceAccount and no pod has; most likely it is
    /// misspelt. The policy is applied, but no peer has that identity: an ALLOW lets nobody in by
    /// it, and a DENY keeps nobody out.
    UnknownServiceAccount,
    /// A policy compares with a principal that no certificate can have. Principals are written
    /// TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT, without spiffe://. The policy is applied, and
    /// this value never matches.
    InvalidPrincipal,
    /// Two objects have the same address, so that a connection to it can mean either. Both are
    /// applied. Give each its own.
    SharedAddress,
    /// A Service or a ServiceEntry has no address, and none is given to it. A Service is taken as
    /// headless: give `spec.clusterIP` an address, or None. Connections to the hosts of a ServiceEntry
    /// are taken for connections to whatever their names resolve to: give `spec.addresses` those
    /// addresses, or the ranges that they are from.
    NoAddress,
    /// Nothing can answer for a service: its selector matches no pod and no WorkloadEntry, nothing
    /// lists its endpoints, a slice belongs to no service, or has only host names, or an endpoint has
    /// no address. Connections to it fail.
    NoEndpoints,
    /// Two services of a namespace have the same host name. A Service counts before a ServiceEntry,
    /// and the older ServiceEntry before the younger; the host of the other is left out. Remove one
    /// of them, or its host.
    DuplicateHost,
    /// A Service of type ExternalName is only another name, in DNS, for a host elsewhere. Nothing is
    /// enforced for the name; for the host it stands for, a ServiceEntry can say more.
    ExternalName,
    /// A pod is to be part of the mesh, and the ztunnel of its node cannot enrol it. Other nodes
    /// take it for enrolled all the same, so connections to it fail. Mend the pod, or take it out
    /// of the mesh with the label `istio.io/dataplane-mode: none`.
    CannotEnrol,
    /// A policy's selector matches no pod in its reach, so the policy protects nothing. Compare its
    /// labels with those of the pods, and its namespace with theirs.
    SelectsNothing,
    /// Every pod that a policy is for is outside the mesh, where nothing enforces it. Enrol the
    /// namespace or the pods with the label `istio.io/dataplane-mode: ambient`.
    NotEnrolled,
    /// A field of a rule is about a request (L7), which a ztunnel cannot see. In an ALLOW policy
    /// the whole rule is dropped, so it allows less than it says. In a DENY or AUDIT policy the
    /// field is dropped, so the rule matches more than it says; or nothing, where it says nothing
    /// else. Express the rule in terms of peers, addresses and ports.
    L7Field,
    /// A value, or a combination of values, that is valid, but that ztunnels cannot enforce as it
    /// is written. The message says what is done instead.
    UnsupportedValue,
    /// Ztunnels enforce the actions ALLOW and DENY, and report what AUDIT matches. A policy with
    /// CUSTOM has no effect.
    UnsupportedAction,
    /// The policy is for something that nothing enforces it on: `targetRefs` name what waypoints
    /// serve, and a PeerAuthentication of the root namespace is for the whole mesh and cannot have
    /// a selector. It has no effect. Use a selector in the workload's own namespace.
    UnsupportedTarget,
    /// A rule or a policy is applied and never matches: a DENY or AUDIT without rules, or one of
    /// which nothing is left that a ztunnel can see.
    NoEffect,
    /// A policy cannot be applied, and no good version of it is known: until it is mended, nothing
    /// is let in to the workloads that it is for, since nobody can tell what it would have refused.
    /// This happens only where nothing is remembered from before, as at a first start.
    StandIn,
    /// A policy cannot be applied. Its last good version stays in force, where there is one; the
    /// message says so.
    NotApplied,
    /// The file in which the control plane keeps the last good versions of policies cannot be read
    /// or written. What is in force stays so; a policy that is broken at the next start may be
    /// missing, or an old one. Mend the file's permissions, or its disk.
    LostMemory,
    /// An ALLOW policy of which no rule is left. It still counts as an ALLOW policy, so everything
    /// that no other policy allows is refused. Mend the rules that were dropped, or remove the
    /// policy.
    DeniesAll,
    /// A field that only a sidecar could obey, and there are none. It has no effect; the rest of the
    /// object is applied.
    SidecarOnly,
    /// Settings of the mesh (the ConfigMap `istio`) that have no effect: Sluice does not read them,
    /// or reads them elsewhere, from a flag of the control plane or in the root namespace.
    UnusedSetting,
    /// Another object of this kind counts instead, for the same scope: the oldest does, or the first
    /// by name among those without `metadata.creationTimestamp`. Remove one of them.
    Conflicted,
    /// The annotation `istio.io/dry-run` is true: the policy decides nothing, as it asks. What it
    /// would have decided is logged and counted.
    DryRun,
    /// Nothing that was read holds an object. Files are read when their names end in .yaml, .yml
    /// or .json and begin with anything but a dot.
    NoObjects,
}

impl Code {
    /// What it means, what happens to the object, and what to do.
    pub fn explanation(self) -> String {
        let lines: Vec<_> = self.doc().iter().map(|line| line.trim()).collect();
        lines.join("\n")
    }

    /// Whether the object is valid and asks for something that the mesh does not do.
    pub fn is_unsupported(self) -> bool {
        matches!(
            self,
            Self::L7Field
                | Self::UnsupportedValue
                | Self::UnsupportedAction
                | Self::UnsupportedTarget
        )
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// There is no code of that name.
#[derive(Debug, thiserror::Error)]
#[error("there is no code {0:?}; --list-codes lists all of them")]
pub struct UnknownCode(String);

impl FromStr for Code {
    type Err = UnknownCode;

    /// Whoever types it need not mind the case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.iter().copied();
        all.find(|code| code.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_name_and_explained() {
        for code in Code::ALL {
            assert_eq!(
                code.to_string().to_lowercase().parse::<Code>().ok(),
                Some(*code)
            );
            let text = code.explanation();
            assert!(
                text.ends_with('.') && !text.starts_with(' '),
                "{code}: {text}"
            );
            assert!(text.len() > 60, "{code}: {text}");
        }
        let error = "Nonsense".parse::<Code>().unwrap_err().to_string();
        assert!(error.contains("Nonsense"), "{error}");
    }
}
