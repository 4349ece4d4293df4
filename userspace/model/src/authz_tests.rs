use super::*;

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn rule(matches: Vec<Match>) -> Rule {
    Rule {
        clauses: vec![Clause { matches }],
    }
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy {
        key: PolicyKey {
            namespace: "shop".into(),
            name: name.into(),
        },
        scope: Scope::Namespace,
        action,
        rules,
        dry_run: false,
    }
}

fn judge(policies: &[Policy], from: Option<&str>, source: &str, destination: &str) -> Decision {
    let identity = from.map(id);
    let connection = Connection {
        source_identity: identity.as_ref(),
        source_ip: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    };
    evaluate(policies.iter(), &connection)
}

const WEB: Option<&str> = Some("spiffe://cluster.local/ns/shop/sa/web");
const EVIL: Option<&str> = Some("spiffe://cluster.local/ns/evil/sa/web");

fn web() -> Decision {
    Decision::Allow(AllowReason::NoAllowPolicy)
}

fn by(decision: fn(PolicyKey, usize) -> Decision, name: &str, rule: usize) -> Decision {
    let key = PolicyKey {
        namespace: "shop".into(),
        name: name.into(),
    };
    decision(key, rule)
}

fn allowed_by(name: &str, rule: usize) -> Decision {
    by(|k, r| Decision::Allow(AllowReason::Rule(k, r)), name, rule)
}

fn denied_by(name: &str, rule: usize) -> Decision {
    by(|k, r| Decision::Deny(DenyReason::Rule(k, r)), name, rule)
}

#[test]
fn the_order_is_deny_then_allow_then_default() {
    let principal = |p: &str| Match {
        principals: vec![exact(p)],
        ..Match::default()
    };
    let allow_web = policy(
        "allow-web",
        Action::Allow,
        vec![rule(vec![principal("cluster.local/ns/shop/sa/web")])],
    );
    let deny_evil = policy(
        "deny-evil",
        Action::Deny,
        vec![rule(vec![principal("cluster.local/ns/evil/sa/web")])],
    );
    let deny_all = policy("deny-all", Action::Deny, vec![Rule::default()]);
    let allow_nothing = policy("allow-nothing", Action::Allow, vec![]);
    let deny_nothing = policy("deny-nothing", Action::Deny, vec![]);
    let no_allow = Decision::Deny(DenyReason::NoAllowMatched);
    let rows: [(&[&Policy], Option<&str>, Decision); 10] = [
        (&[], WEB, web()),
        (&[], None, web()),
        (&[&deny_evil], WEB, web()),
        (&[&deny_evil], EVIL, denied_by("deny-evil", 0)),
        (&[&allow_web], WEB, allowed_by("allow-web", 0)),
        (&[&allow_web], EVIL, no_allow.clone()),
        (&[&allow_web], None, no_allow.clone()),
        (&[&allow_web, &deny_all], WEB, denied_by("deny-all", 0)),
        (&[&allow_nothing], WEB, no_allow),
        (&[&deny_nothing], WEB, web()),
    ];
    for (policies, from, expected) in rows {
        let policies: Vec<Policy> = policies.iter().copied().cloned().collect();
        let decision = judge(&policies, from, "10.0.0.1", "10.0.0.2:80");
        assert_eq!(decision, expected, "{policies:?} from {from:?}");
    }
}

#[test]
fn dry_run_never_decides() {
    let mut deny = policy("deny", Action::Deny, vec![Rule::default()]);
    deny.dry_run = true;
    let mut allow = policy("allow", Action::Allow, vec![]);
    allow.dry_run = true;
    assert_eq!(judge(&[deny, allow], WEB, "10.0.0.1", "10.0.0.2:80"), web());
}

/// Each row: a match, whether it matches web in shop from 10.0.0.1 to 10.0.0.2:80, and whether it
/// matches the same without an identity.
#[test]
fn fields() {
    let m = Match::default;
    let net = |text: &str| vec![text.parse().unwrap()];
    let account = |namespace: &str, name: &str| {
        vec![ServiceAccountMatch {
            namespace: namespace.into(),
            name: name.into(),
        }]
    };
    let prefix = |text: &str| vec![StringMatch::Prefix(text.into())];
    let suffix = |text: &str| vec![StringMatch::Suffix(text.into())];
    let presence = || vec![StringMatch::Presence];
    #[rustfmt::skip]
    let rows = [
        (m(), false, false),
        (Match { namespaces: vec![exact("shop")], ..m() }, true, false),
        (Match { namespaces: vec![exact("other"), exact("shop")], ..m() }, true, false),
        (Match { namespaces: vec![exact("other")], ..m() }, false, false),
        (Match { not_namespaces: vec![exact("shop")], ..m() }, false, true),
        (Match { namespaces: prefix("sh"), ..m() }, true, false),
        (Match { namespaces: suffix("op"), ..m() }, true, false),
        (Match { principals: prefix("cluster.local/ns/shop/"), ..m() }, true, false),
        (Match { principals: suffix("/sa/web"), ..m() }, true, false),
        (Match { principals: prefix("spiffe://"), ..m() }, false, false),
        (Match { principals: presence(), ..m() }, true, false),
        (Match { not_principals: presence(), ..m() }, false, true),
        (Match { service_accounts: account("shop", "web"), ..m() }, true, false),
        (Match { service_accounts: account("shop", "db"), ..m() }, false, false),
        (Match { not_service_accounts: account("shop", "web"), ..m() }, false, true),
        (Match { source_ips: net("10.0.0.0/24"), ..m() }, true, true),
        (Match { source_ips: net("10.0.1.0/24"), ..m() }, false, false),
        (Match { not_source_ips: net("10.0.0.1/32"), ..m() }, false, false),
        (Match { destination_ips: net("10.0.0.2/32"), ..m() }, true, true),
        (Match { not_destination_ips: net("10.0.0.2/32"), ..m() }, false, false),
        (Match { destination_ports: vec![443, 80], ..m() }, true, true),
        (Match { destination_ports: vec![443], ..m() }, false, false),
        (Match { not_destination_ports: vec![80], ..m() }, false, false),
        (Match { namespaces: vec![exact("shop")], destination_ports: vec![443], ..m() }, false, false),
        (Match { namespaces: vec![exact("shop")], destination_ports: vec![80], ..m() }, true, false),
    ];
    for (matcher, with, without) in rows {
        let deny = policy("p", Action::Deny, vec![rule(vec![matcher.clone()])]);
        for (from, expected) in [(WEB, with), (None, without)] {
            let decision = judge(std::slice::from_ref(&deny), from, "10.0.0.1", "10.0.0.2:80");
            assert_eq!(
                !decision.is_allowed(),
                expected,
                "{matcher:?} from {from:?}"
            );
        }
    }
}

#[test]
fn clauses_are_anded_and_matches_ored() {
    let port = |port| Match {
        destination_ports: vec![port],
        ..Match::default()
    };
    let ns = |ns: &str| Match {
        namespaces: vec![exact(ns)],
        ..Match::default()
    };
    let clause = |matches: Vec<Match>| Clause { matches };
    let rows = [
        (vec![clause(vec![port(80)]), clause(vec![ns("shop")])], true),
        (
            vec![clause(vec![port(80)]), clause(vec![ns("evil")])],
            false,
        ),
        (vec![clause(vec![port(81), port(80)])], true),
        (vec![clause(vec![]), clause(vec![port(80)])], true),
        (vec![clause(vec![])], true),
        (vec![clause(vec![Match::default()])], false),
        (vec![clause(vec![Match::default(), port(80)])], true),
    ];
    for (clauses, matches) in rows {
        let deny = policy(
            "p",
            Action::Deny,
            vec![Rule {
                clauses: clauses.clone(),
            }],
        );
        let decision = judge(&[deny], WEB, "10.0.0.1", "10.0.0.2:80");
        assert_eq!(!decision.is_allowed(), matches, "{clauses:?}");
    }
}

#[test]
fn mapped_addresses_are_ipv4() {
    let deny = policy(
        "p",
        Action::Deny,
        vec![rule(vec![Match {
            source_ips: vec!["10.0.0.0/8".parse().unwrap()],
            ..Match::default()
        }])],
    );
    let decision = judge(&[deny], None, "::ffff:10.0.0.1", "[::ffff:10.0.0.2]:80");
    assert_eq!(decision, denied_by("p", 0));
}

#[test]
fn long_principals_are_compared_whole() {
    let name = "n".repeat(300);
    let source = format!("spiffe://cluster.local/ns/{name}/sa/web");
    let wanted = exact(&format!("cluster.local/ns/{name}/sa/web"));
    let deny = policy(
        "p",
        Action::Deny,
        vec![rule(vec![Match {
            principals: vec![wanted],
            ..Match::default()
        }])],
    );
    let policies = [deny];
    assert_eq!(
        judge(&policies, Some(&source), "10.0.0.1", "10.0.0.2:80"),
        denied_by("p", 0)
    );
    assert_eq!(
        judge(
            &policies,
            Some(&source[..source.len() - 1]),
            "10.0.0.1",
            "10.0.0.2:80"
        ),
        web()
    );
}
