use super::*;

fn parts(identity: &str) -> SvidParts {
    // A key in form only: whether the parts belong together is not looked at here.
    let key = rcgen::KeyPair::generate().unwrap().serialize_der();
    let identity = identity.parse().unwrap();
    SvidParts::from_der(identity, &[b"leaf", b"above"], &key, &[b"root"]).unwrap()
}

#[test]
fn certificates_arrive_as_they_were() {
    let web = parts("spiffe://cluster.local/ns/shop/sa/web");
    let key = web.key.secret_der().to_vec();
    let db = parts("spiffe://cluster.local/ns/shop/sa/db");
    let fd = write_certificates(&[web, db]).unwrap();
    let [web, db] = &read_certificates(&File::from(fd)).unwrap()[..] else {
        panic!("not two")
    };
    assert_eq!(
        web.identity.to_string(),
        "spiffe://cluster.local/ns/shop/sa/web"
    );
    assert_eq!(
        db.identity.to_string(),
        "spiffe://cluster.local/ns/shop/sa/db"
    );
    assert_eq!(web.key.secret_der(), key);
    let der = |list: &[_]| {
        list.iter()
            .map(AsRef::as_ref)
            .map(<[u8]>::to_vec)
            .collect::<Vec<_>>()
    };
    assert_eq!(der(&web.chain), [b"leaf".to_vec(), b"above".to_vec()]);
    assert_eq!(der(&web.roots), [b"root"]);
}

#[test]
fn nonsense_is_refused() {
    for content in [
        &b"\xff\xff\xff"[..],
        b"\x01\x01a",
        b"\x01\x01a\x00\x01k\x00",
    ] {
        let fd = memory::write("test", |file| file.write_all(content)).unwrap();
        read_certificates(&File::from(fd)).unwrap_err();
    }
    let none = write_certificates(&[]).unwrap();
    assert!(read_certificates(&File::from(none)).unwrap().is_empty());
}
