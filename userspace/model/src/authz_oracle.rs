//! The indexed engine against a plain one that is obviously right.

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::super::*;
use super::*;

/// Whether each word of the definition holds, as it is written down.
mod plain {
    use super::*;

    pub(super) fn judge(scopes: &[Vec<Policy>; 3], c: &Connection<'_>) -> Judgement {
        let dry_runs = |policy: &&Policy| policy.dry_run && policy.action != Action::Audit;
        let any_dry_run = in_order(scopes).iter().any(dry_runs);
        Judgement {
            decision: decide(scopes, c, |policy| !policy.dry_run),
            dry_run: any_dry_run.then(|| with_dry_run(scopes, c)),
        }
    }

    fn in_order(scopes: &[Vec<Policy>; 3]) -> Vec<&Policy> {
        let mut all = Vec::new();
        for scope in scopes {
            let mut scope: Vec<&Policy> = scope.iter().collect();
            scope.sort_by(|a, b| a.key.cmp(&b.key));
            all.extend(scope);
        }
        all
    }

    fn decide(
        scopes: &[Vec<Policy>; 3],
        c: &Connection<'_>,
        counts: impl Fn(&Policy) -> bool,
    ) -> Decision {
        let all = in_order(scopes);
        let of = |action| {
            let policies = all.iter().filter(|policy| counts(policy));
            policies.filter(move |policy| policy.action == action)
        };
        if let Some(rule) = of(Action::Deny).find_map(|policy| matching(policy, c)) {
            return Decision::Deny(DenyReason::Rule(rule));
        }
        if of(Action::Allow).next().is_none() {
            return Decision::Allow(AllowReason::NoAllowPolicy);
        }
        match of(Action::Allow).find_map(|policy| matching(policy, c)) {
            Some(rule) => Decision::Allow(AllowReason::Rule(rule)),
            None => Decision::Deny(DenyReason::NoAllowMatched),
        }
    }

    /// With everything in force; where policies of both kinds decide alike, those in force count.
    fn with_dry_run(scopes: &[Vec<Policy>; 3], c: &Connection<'_>) -> Decision {
        let now = decide(scopes, c, |policy| !policy.dry_run);
        let then = decide(scopes, c, |_| true);
        let by_rule = now.rule().is_some() && now.is_allowed() == then.is_allowed();
        if by_rule { now } else { then }
    }

    pub(super) fn audits(scopes: &[Vec<Policy>; 3], c: &Connection<'_>) -> Vec<RuleId> {
        let all = in_order(scopes).into_iter();
        let audits = all.filter(|policy| policy.action == Action::Audit && !policy.dry_run);
        audits.filter_map(|policy| matching(policy, c)).collect()
    }

    fn matching(policy: &Policy, c: &Connection<'_>) -> Option<RuleId> {
        let rule = policy.rules.iter().position(|rule| {
            rule.clauses
                .iter()
                .all(|clause| clause.matches.is_empty() || clause.matches.iter().any(|m| one(m, c)))
        })?;
        Some(RuleId {
            policy: policy.key.clone(),
            rule: rule as u32,
        })
    }

    fn one(m: &Match, c: &Connection<'_>) -> bool {
        !m.terms().is_empty()
            && m.terms()
                .iter()
                .all(|term| term.negated != holds(&term.values, c))
    }

    fn holds(values: &Values, c: &Connection<'_>) -> bool {
        let namespace = c.source_identity.map(|id| id.namespace().to_string());
        match values {
            Values::Namespaces(list) => {
                let namespace = namespace.unwrap_or_default();
                list.iter().any(|pattern| text(pattern, &namespace))
            }
            Values::ServiceAccounts(list) => c.source_identity.is_some_and(|id| {
                list.iter()
                    .any(|a| (&a.namespace, &a.name) == (id.namespace(), id.service_account()))
            }),
            Values::Principals(list) => {
                let names = principals(c);
                list.iter().any(|p| names.iter().any(|name| text(p, name)))
            }
            Values::SourceIps(list) => {
                let ip = c.source_ip.to_canonical();
                list.iter().any(|net| net.contains(&ip))
            }
            Values::DestinationIps(list) => {
                let ip = c.destination.ip().to_canonical();
                list.iter().any(|net| net.contains(&ip))
            }
            Values::DestinationPorts(list) => list.contains(&c.destination.port()),
        }
    }

    fn principals(c: &Connection<'_>) -> Vec<String> {
        let Some(id) = c.source_identity else {
            return Vec::new();
        };
        let mut names = vec![id.principal().to_string()];
        if c.equivalent.contains(id.trust_domain()) {
            let others = c.equivalent.iter().cloned();
            names.extend(others.map(|d| id.in_domain(d).principal().to_string()));
        }
        names
    }

    fn text(pattern: &StringMatch, value: &str) -> bool {
        match pattern {
            StringMatch::Exact(text) => value == &**text,
            StringMatch::Prefix(text) => value.starts_with(&**text),
            StringMatch::Suffix(text) => value.ends_with(&**text),
            StringMatch::Presence => !value.is_empty(),
        }
    }
}

// Few different names, so that much of what is generated meets.

fn namespace() -> impl Strategy<Value = &'static str> {
    select(vec!["a", "ab", "abc", "b", "shop", "n-1", "n-12"])
}

fn account() -> impl Strategy<Value = &'static str> {
    select(vec!["a", "web", "b-web", "ns", "sa"])
}

fn domain() -> impl Strategy<Value = &'static str> {
    select(vec!["td", "td.old", "x"])
}

fn principal() -> impl Strategy<Value = String> {
    (domain(), namespace(), account()).prop_map(|(td, ns, sa)| format!("{td}/ns/{ns}/sa/{sa}"))
}

/// A pattern that is cut out of a text, or that has little to do with it.
fn pattern(text: impl Strategy<Value = String>) -> impl Strategy<Value = StringMatch> {
    let odd = select(vec![
        "", "/", "ns/", "td/ns", "td/ns/", "/sa/web", "web/", "é",
    ]);
    (text, 0..4usize, 0..24usize, option::weighted(0.1, odd)).prop_map(|(text, kind, cut, odd)| {
        let text = odd.map_or(text, str::to_owned);
        let at = if text.is_ascii() {
            cut.min(text.len())
        } else {
            0
        };
        match kind {
            0 => StringMatch::Exact(text.into()),
            1 => StringMatch::Prefix(text[..text.len() - at].into()),
            2 => StringMatch::Suffix(text[at..].into()),
            _ => StringMatch::Presence,
        }
    })
}

fn ip() -> impl Strategy<Value = IpAddr> {
    let texts = [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.1.1",
        "192.168.0.1",
        "fd00::1",
        "fd00:0:0:1::1",
    ];
    let mapped = ["::ffff:10.0.0.1"];
    select([texts.to_vec(), mapped.to_vec()].concat()).prop_map(|text| text.parse().unwrap())
}

fn net() -> impl Strategy<Value = IpNet> {
    let lengths = select(vec![0, 1, 8, 16, 23, 24, 31, 32, 48, 64, 127, 128]);
    (ip(), lengths).prop_map(|(ip, length)| {
        let ip = ip.to_canonical();
        IpNet::new(ip, length.min(if ip.is_ipv4() { 32 } else { 128 })).unwrap()
    })
}

fn port() -> impl Strategy<Value = u16> {
    select(vec![80, 81, 443, 0])
}

fn values() -> impl Strategy<Value = Values> {
    let service_account =
        (namespace(), account()).prop_map(|(namespace, name)| ServiceAccountMatch {
            namespace: namespace.into(),
            name: name.into(),
        });
    let namespaces = pattern(namespace().prop_map(str::to_owned));
    prop_oneof![
        vec(namespaces, 0..3).prop_map(|list| Values::Namespaces(list.into())),
        vec(service_account, 0..3).prop_map(|list| Values::ServiceAccounts(list.into())),
        vec(pattern(principal()), 0..3).prop_map(|list| Values::Principals(list.into())),
        vec(net(), 0..3).prop_map(|list| Values::SourceIps(list.into())),
        vec(net(), 0..3).prop_map(|list| Values::DestinationIps(list.into())),
        vec(port(), 0..3).prop_map(|list| Values::DestinationPorts(list.into())),
    ]
}

fn a_rule() -> impl Strategy<Value = Rule> {
    let term = (values(), any::<bool>()).prop_map(|(values, negated)| Term { values, negated });
    let one = vec(term, 0..3).prop_map(Match::from_iter);
    let clause = vec(one, 0..3).prop_map(Clause::from_iter);
    vec(clause, 0..3).prop_map(Rule::from_iter)
}

fn a_policy() -> impl Strategy<Value = Policy> {
    let action = prop_oneof![
        3 => Just(Action::Allow), 3 => Just(Action::Deny), 1 => Just(Action::Audit),
    ];
    let key = ("[a-c]", "[a-z]{2}");
    (key, action, vec(a_rule(), 0..4), prop::bool::weighted(0.25)).prop_map(
        |((namespace, name), action, rules, dry_run)| Policy {
            key: PolicyKey {
                namespace: namespace.into(),
                name: name.into(),
            },
            scope: Scope::Namespace,
            action,
            rules: rules.into(),
            dry_run,
        },
    )
}

fn scope() -> impl Strategy<Value = Vec<Policy>> {
    vec(a_policy(), 0..4).prop_map(|mut policies| {
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        policies.dedup_by(|a, b| a.key == b.key);
        policies
    })
}

/// Who connects, from where and to where.
type Facts = (Option<String>, IpAddr, IpAddr, u16);

fn connection() -> impl Strategy<Value = Facts> {
    (option::weighted(0.8, principal()), ip(), ip(), port())
}

/// In each run this many policy sets, each with [`CONNECTIONS`] connections.
const SETS: u32 = 10_000;
const CONNECTIONS: usize = 12;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(SETS))]

    #[test]
    fn the_index_changes_no_verdict_and_no_reason(
        scopes in [scope(), scope(), scope()],
        connections in vec(connection(), CONNECTIONS),
        equivalent in select(vec![vec![], vec!["td", "td.old"]]),
    ) {
        let sets = scopes.each_ref().map(|scope| {
            let set = scope.iter().cloned().map(Arc::new).collect();
            (!scope.is_empty()).then(|| Arc::new(set))
        });
        let indexed = Applicable::new(sets);
        let equivalent: Vec<TrustDomain> =
            equivalent.into_iter().map(|domain| domain.parse().unwrap()).collect();
        for (principal, source_ip, destination, port) in connections {
            let identity = principal.map(|name| id(&format!("spiffe://{name}")));
            let connection = Connection {
                source_identity: identity.as_ref(),
                source_ip,
                destination: SocketAddr::new(destination, port),
                equivalent: &equivalent,
            };
            prop_assert_eq!(indexed.judge(&connection), plain::judge(&scopes, &connection));
            let mut audits = Vec::new();
            indexed.audit(&connection, |rule| audits.push(rule));
            prop_assert_eq!(audits, plain::audits(&scopes, &connection));
        }
    }
}
