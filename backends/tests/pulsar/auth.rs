//! Credentials and TLS, on a broker of their own that demands both.

use std::{fs, path::Path, process::Command, sync::atomic::AtomicUsize};

use queueproof_backends::{
    BackendError, ErrorKind,
    pulsar::{Auth, Tls},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};

use super::*;

pub fn add(cases: &mut Cases<'_>) {
    cases.add("credentials and certificates are used, and wrong ones told and not repeated", safe);
}

/// Makes a certificate for 127.0.0.1 and its key, in PEM; `false` where there is no openssl.
fn certificate(folder: &Path, name: &str) -> bool {
    let file = |ending: &str| folder.join(format!("{name}.{ending}"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
        .args(["-subj", &format!("/CN={name}")])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(file("key"))
        .arg("-out")
        .arg(file("pem"))
        .output();
    made.is_ok_and(|made| made.status.success())
}

/// A password's line as Apache's htpasswd writes it.
fn htpasswd(user: &str, password: &str) -> String {
    let hash = Command::new("openssl").args(["passwd", "-apr1", password]).output().unwrap();
    format!("{user}:{}", String::from_utf8(hash.stdout).unwrap())
}

/// An issuer of OAuth 2.0 that hands out these tokens, one after the other and then the last one
/// again, each for so many seconds.
async fn issuer(tokens: Vec<(String, u32)>) -> (String, Arc<AtomicUsize>) {
    use std::sync::atomic::Ordering;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/realm", listener.local_addr().unwrap());
    let issued = Arc::new(AtomicUsize::new(0));
    let (base, counting) = (url.clone(), Arc::clone(&issued));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut question = vec![0; 8192];
            let mut length = 0;
            // The form comes in one piece with its head, or right after it.
            loop {
                length += socket.read(&mut question[length..]).await.unwrap();
                let text = String::from_utf8_lossy(&question[..length]);
                if text.starts_with("GET") && text.ends_with("\r\n\r\n")
                    || text.contains("grant_type")
                {
                    break;
                }
            }
            let text = String::from_utf8_lossy(&question[..length]).into_owned();
            let body = if text.starts_with("GET /realm/.well-known/openid-configuration") {
                serde_json::json!({
                    "issuer": base,
                    "authorization_endpoint": format!("{base}/authorize"),
                    "token_endpoint": format!("{base}/token"),
                    "jwks_uri": format!("{base}/jwks"),
                    "response_types_supported": ["code"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["RS256"],
                })
            } else if text.starts_with("GET") {
                serde_json::json!({ "keys": [] })
            } else {
                assert!(text.contains("hunter2"), "the secret is not there: {text}");
                let number = counting.fetch_add(1, Ordering::Relaxed).min(tokens.len() - 1);
                let (token, seconds) = &tokens[number];
                serde_json::json!({
                    "access_token": token, "token_type": "Bearer", "expires_in": seconds,
                })
            };
            let body = body.to_string();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, issued)
}

async fn refusal(settings: PulsarSettings) -> BackendError {
    let connector = PulsarConnector::new(settings).unwrap();
    let answer = timeout(SOON, connector.connect(None)).await.expect("in time");
    answer.map(drop).expect_err("it connected")
}

async fn safe(shared: Arc<Broker>) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    if !certificate(folder.path(), "server") || !certificate(folder.path(), "client") {
        eprintln!("NOT RUN: credentials and TLS: no openssl to make a certificate with");
        return;
    }
    let show = |name: &str| path(name).display().to_string();
    shared.tool(&["tokens", "create-secret-key", "--output", &show("secret")]);
    let secret = format!("file://{}", show("secret"));
    let token = |subject: &str, more: &[&str]| {
        let mut arguments = vec!["tokens", "create", "--secret-key", &secret, "--subject", subject];
        arguments.extend(more);
        shared.tool(&arguments)
    };
    let admin = token("admin", &[]);
    let stranger = token("stranger", &[]);
    fs::write(path("passwords"), htpasswd("me", "right")).unwrap();
    let (tls_port, tls_web) = (broker::free_port(), broker::free_port());
    let lines = vec![
            "authenticationEnabled=true".into(),
            "authorizationEnabled=true".into(),
            "authenticationRefreshCheckSeconds=1".into(),
            "superUserRoles=admin,me".into(),
            "authenticationProviders=org.apache.pulsar.broker.authentication.AuthenticationProviderToken,org.apache.pulsar.broker.authentication.AuthenticationProviderBasic".into(),
            format!("tokenSecretKey={secret}"),
            format!("basicAuthConf=file://{}", show("passwords")),
            "brokerClientAuthenticationPlugin=org.apache.pulsar.client.impl.auth.AuthenticationToken".into(),
            format!("brokerClientAuthenticationParameters=token:{admin}"),
            format!("brokerServicePortTls={tls_port}"),
            format!("webServicePortTls={tls_web}"),
            format!("tlsCertificateFilePath={}", show("server.pem")),
            format!("tlsKeyFilePath={}", show("server.key")),
            format!("tlsTrustCertsFilePath={}", show("client.pem")),
    ];
    let broker = shared.another_for(lines, &admin);
    let open = |auth| PulsarSettings { auth, ..settings(&broker) };
    let basic = |password: &str| Auth::Basic { user: "me".into(), password: password.into() };
    // The right ones.
    for auth in [Auth::Token(admin.clone()), basic("right")] {
        use_it(open(auth)).await;
    }
    // The wrong ones.
    let forged = format!("{}hunter2", &admin[..admin.len() - 4]);
    for auth in [Auth::None, Auth::Token(forged), basic("hunter2")] {
        let settings = open(auth);
        assert!(!format!("{settings:?}").contains("hunter2"));
        let error = refusal(settings).await;
        assert_eq!(error.kind, ErrorKind::Unauthorized, "{error}");
        assert!(!error.context.contains("hunter2"), "{error}");
    }
    // One that is known, and may not.
    let error = refusal(open(Auth::Token(stranger.clone()))).await;
    assert_eq!(error.kind, ErrorKind::Unauthorized, "{error}");
    assert!(!error.context.contains(&stranger), "{error}");
    // TLS, with and without trust, with and without a certificate of one's own.
    let secure = |tls| PulsarSettings {
        url: format!("pulsar+ssl://127.0.0.1:{tls_port}"),
        admin_url: format!("https://127.0.0.1:{tls_web}"),
        tls,
        ..open(Auth::Token(admin.clone()))
    };
    let trusting = Tls { ca_file: Some(path("server.pem")), client: None };
    use_it(secure(trusting.clone())).await;
    let client = Some((path("client.pem"), path("client.key")));
    use_it(secure(Tls { client, ..trusting.clone() })).await;
    let error = refusal(secure(Tls::default())).await;
    assert_eq!(error.kind, ErrorKind::WrongServer, "{error}");
    assert!(error.context.contains("pulsar.tls"), "{error}");
    let admin_untrusted = PulsarSettings {
        url: broker.url(),
        connect_timeout: Duration::from_secs(2),
        ..secure(Tls::default())
    };
    let error = refusal(admin_untrusted).await;
    assert!(error.context.contains("pulsar.admin_url"), "{error}");
    // Without TLS at a port that wants it.
    let error = refusal(PulsarSettings {
        url: format!("pulsar://127.0.0.1:{tls_port}"),
        ..secure(trusting)
    })
    .await;
    assert_eq!(error.kind, ErrorKind::WrongServer, "{error}");
    // A token that runs out costs the connection; with OAuth 2.0 the broker is given the next one
    // when it asks, on the same connection.
    let short = token("admin", &["--expiry-time", "8s"]);
    let (issuer_url, issued) = issuer(vec![(short.clone(), 1), (admin, 3600)]).await;
    fs::write(
        path("credentials.json"),
        r#"{"type":"client_credentials","client_id":"me","client_secret":"hunter2"}"#,
    )
    .unwrap();
    let oauth2 = |issuer_url| Auth::OAuth2 {
        issuer_url,
        credentials_file: path("credentials.json"),
        audience: Some("pulsar".into()),
        scope: None,
    };
    let connector = PulsarConnector::new(open(oauth2(issuer_url))).unwrap();
    let connection = connector.connect(None).await.unwrap();
    let connector = PulsarConnector::new(open(Auth::Token(short))).unwrap();
    let control = connector.connect(None).await.unwrap();
    let topic = work_queue(&connection).await;
    let mut publisher = plain(&connection, &topic).await;
    until("the token has run out", async || control.disconnects() > 0).await;
    control.close().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    publish(&mut publisher, Message::new("x")).await.unwrap();
    assert_eq!(connection.disconnects(), 0);
    assert_eq!(issued.load(std::sync::atomic::Ordering::Relaxed), 2);
    let nowhere = format!("http://127.0.0.1:{}", broker::free_port());
    let error = refusal(open(oauth2(nowhere))).await;
    assert_eq!(error.kind, ErrorKind::Unauthorized, "{error}");
}

/// Connects and lets a message through.
async fn use_it(settings: PulsarSettings) {
    let connection = PulsarConnector::new(settings).unwrap().connect(None).await.unwrap();
    let topic = work_queue(&connection).await;
    publish(&mut plain(&connection, &topic).await, Message::new("x")).await.unwrap();
    take(&mut consumer(&connection, &topic, 1).await, 1).await[0].ack().await.unwrap();
    connection.close().await;
}
