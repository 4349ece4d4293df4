use tokio::net::UdpSocket;

use super::*;

/// Answers every question for an A record with these addresses, and others with none.
async fn nameserver(answers: &'static [[u8; 4]]) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query).await {
            let answer = answer(&query[..length], answers);
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    address
}

/// A response (RFC 1035 §4.1) to a query with one question.
fn answer(query: &[u8], answers: &[[u8; 4]]) -> Vec<u8> {
    let name_end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 1;
    let question = &query[12..name_end + 4];
    let is_a = question[question.len() - 4..][..2] == [0, 1];
    let answers = if is_a { answers } else { &[] };
    let mut response = query[..2].to_vec();
    // A response, recursion desired and available, no error; one question.
    response.extend([0x81, 0x80, 0, 1, 0, answers.len() as u8, 0, 0, 0, 0]);
    response.extend(question);
    for ip in answers {
        // The name of the question; A, IN, a TTL of 60 s, four bytes.
        response.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        response.extend(ip);
    }
    response
}

async fn resolve(answers: &'static [[u8; 4]]) -> Result<Vec<String>, String> {
    let resolver = Resolver::new(&[nameserver(answers).await]);
    let found = resolver.addresses(&"db.example.com".into()).await;
    let found = found.map_err(|error| error.to_string())?;
    Ok(found.iter().map(ToString::to_string).collect())
}

#[tokio::test]
async fn a_name_is_resolved_to_all_of_its_addresses() {
    let found = resolve(&[[192, 0, 2, 1], [192, 0, 2, 2]]).await.unwrap();
    assert_eq!(found, ["192.0.2.1", "192.0.2.2"]);
}

#[tokio::test]
async fn nobody_is_led_to_the_pods_own_loopback() {
    let found = resolve(&[[127, 0, 0, 1], [192, 0, 2, 1], [0, 0, 0, 0]]).await;
    assert_eq!(found.unwrap(), ["192.0.2.1"]);
    let error = resolve(&[[127, 0, 0, 1]]).await.unwrap_err();
    assert!(error.contains("only addresses"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_resolved_says_why() {
    let unknown = resolve(&[]).await.unwrap_err();
    assert!(unknown.contains("no records"), "{unknown}");
    let alone = Resolver::new(&[]).addresses(&"db.example.com".into()).await;
    let alone = alone.unwrap_err().to_string();
    assert!(alone.contains("--nameserver"), "{alone}");
}
