//! Where credentials go and where they never do: the catalogue K04–K11, R20 and T05.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    ClientOptions, Credentials, CredentialsFor, Found, RegistryError, RegistryOptions, Sent,
    faults::{PASSWORD, basic, manifest, push},
    scripted::{Reply, Server, impatient},
};
use crate::{
    oci::Reference,
    trust::{Identity, IdentityKind},
};

#[tokio::test]
async fn k04_neither_password_nor_query_nor_token_is_ever_shown() {
    let server = Server::start(|request| {
        let echoed = request.header("authorization").unwrap_or("nothing").to_owned();
        match request.method.as_str() {
            "POST" => Reply::new(202).with("location", "/up?X-Amz-Signature=signed-secret"),
            "PUT" => {
                Reply::new(400).body(format!("{echoed} {PASSWORD} http://x/y?sig=signed-secret"))
            }
            _ if request.header("authorization").is_none() => {
                Reply::new(401).with("www-authenticate", "Basic realm=x")
            }
            _ => Reply::new(404),
        }
    })
    .await;
    let client = server.client(|options| options.credentials = basic());
    let error = push(&client, &server.image("a/b:1"), b"x", &[]).await.unwrap_err();
    let shown = format!("{error} {error:?} {client:?} {:?}", basic());
    assert!(!shown.contains(PASSWORD) && !shown.contains("signed-secret"), "{shown}");
}

#[tokio::test]
async fn k07_k09_credentials_never_follow_to_another_origin() {
    let other = Server::start(|request| match request.method.as_str() {
        "PUT" => Reply::new(201),
        _ => manifest(),
    })
    .await;
    let elsewhere = other.registry();
    let server = Server::start(move |request| {
        if request.header("authorization").is_none() {
            return Reply::new(401).with("www-authenticate", "Basic realm=x");
        }
        match request.method.as_str() {
            "HEAD" => Reply::new(404),
            "POST" => Reply::new(202).with("location", format!("http://me:pw@{elsewhere}/up")),
            _ => Reply::new(307).with("location", format!("//{elsewhere}/v2/a/b/manifests/1")),
        }
    })
    .await;
    let client = server.client(|options| options.credentials = basic());
    client.manifest(&server.image("a/b:1")).await.unwrap();
    push(&client, &server.image("a/b:1"), b"layer", &[]).await.unwrap();
    let asked = other.asked();
    assert_eq!(asked.len(), 2, "{:?}", other.lines());
    for request in asked {
        assert_eq!(request.header("authorization"), None);
        assert_eq!(request.header("cookie"), None);
    }
}

#[tokio::test]
async fn t05_no_blob_leaves_tls_for_a_place_without() {
    let plain = Server::start(|_| Reply::new(201)).await;
    let elsewhere = plain.registry();
    let identity = Identity::make(&["127.0.0.1".to_owned()], IdentityKind::Authority).unwrap();
    let server = Server::start_with(Some(identity.server_config().unwrap()), move |request| {
        match request.method.as_str() {
            "POST" => Reply::new(202).with("location", format!("http://{elsewhere}/up")),
            _ => Reply::new(404),
        }
    })
    .await;
    let mut options = ClientOptions::default();
    let ca_pem = Some(identity.authority_pem.into_bytes());
    let trusted = RegistryOptions { ca_pem, ..RegistryOptions::default() };
    options.registries.insert(server.registry(), trusted);
    let client = impatient(options).unwrap();
    let error = push(&client, &server.image("a/b:1"), b"x", &[]).await.unwrap_err();
    assert!(error.to_string().contains("one without TLS"), "{error}");
    let RegistryError::Refused { help: Some(help), .. } = error else { panic!("{error}") };
    assert!(help.contains("X-Forwarded-Proto"), "{help}");
    assert_eq!(plain.lines(), Vec::<String>::new());
}

#[tokio::test]
async fn k08_a_realm_elsewhere_gets_no_password_unless_it_is_allowed() {
    let other = Server::start(|_| Reply::new(200).body(br#"{"access_token":"granted"}"#)).await;
    let elsewhere = other.registry();
    let server = Server::start(move |request| {
        let realm = match request.target.as_str() {
            "/v2/a/manifests/file" => "file:///etc/passwd".to_owned(),
            "/v2/a/manifests/meta" => "http://169.254.169.254/latest".to_owned(),
            _ => format!("http://{elsewhere}/token"),
        };
        match request.header("authorization") {
            Some("Bearer granted") => manifest(),
            _ => Reply::new(401).with("www-authenticate", format!("Bearer realm=\"{realm}\"")),
        }
    })
    .await;
    let client = server.client(|options| options.credentials = basic());
    for tag in ["1", "file", "meta"] {
        let error = client.manifest(&server.image(&format!("a:{tag}"))).await.unwrap_err();
        let RegistryError::Auth { help, reason, .. } = &error else { panic!("{tag}: {error}") };
        assert!(help.contains("auth-realm") && reason.contains("another origin"), "{help}");
        let anonymous = server.client(|_| {}).manifest(&server.image(&format!("a:{tag}"))).await;
        assert_eq!(anonymous.is_ok(), tag == "1", "{tag}");
    }
    assert!(other.asked().iter().all(|asked| asked.header("authorization").is_none()));
    let realm = format!("http://{}", other.registry());
    let allowed = server.client(|options| {
        options.credentials = basic();
        options.auth_realms = vec![realm];
    });
    allowed.manifest(&server.image("a:1")).await.unwrap();
    let asked = other.asked().pop().unwrap();
    assert!(asked.header("authorization").unwrap().starts_with("Basic "));
}

#[tokio::test]
async fn k10_credentials_belong_to_one_origin() {
    let server = Server::start(|request| match request.header("authorization") {
        None => Reply::new(401).with("www-authenticate", "Basic realm=x"),
        Some(_) => manifest(),
    })
    .await;
    let port = server.address.port();
    for other in ["localhost".to_owned(), "127.0.0.1".to_owned(), format!("127.0.0.1:{}", port ^ 1)]
    {
        let mut options = ClientOptions::default();
        let secret = RegistryOptions { credentials: basic(), ..RegistryOptions::default() };
        options.registries.insert(other.clone(), secret);
        let found = move |asked: &str, _: Option<&str>| {
            let credentials = (asked == other).then(basic).flatten()?;
            Some(Found { credentials, place: "a file".to_owned() })
        };
        options.credentials = Some(Arc::new(found));
        let client = impatient(options).unwrap();
        let error = client.manifest(&server.image("a:1")).await.unwrap_err();
        assert!(error.to_string().contains("no credentials were sent"), "{error}");
    }
    assert!(server.asked().iter().all(|asked| asked.header("authorization").is_none()));
}

#[tokio::test]
async fn a_refusal_says_where_the_credentials_came_from_that_were_sent() {
    let server = Server::start(|_| Reply::new(401).with("www-authenticate", "Basic realm=x")).await;
    let find = |credentials: Option<Credentials>| -> CredentialsFor {
        Arc::new(move |_, _| {
            let credentials = credentials.clone()?;
            Some(Found { credentials, place: "a file".to_owned() })
        })
    };
    for (given, found, wanted) in [
        (basic(), basic(), Sent::Given),
        (None, basic(), Sent::Found("a file".to_owned())),
        (None, None, Sent::Nothing),
    ] {
        let mut options =
            ClientOptions { credentials: Some(find(found)), ..ClientOptions::default() };
        let registry =
            RegistryOptions { plain_http: true, credentials: given, ..RegistryOptions::default() };
        options.registries.insert(server.registry(), registry);
        let error = impatient(options).unwrap().manifest(&server.image("a:1")).await.unwrap_err();
        let RegistryError::Auth { sent, .. } = error else { panic!("{error}") };
        assert_eq!(sent, wanted);
    }
}

#[tokio::test]
async fn credentials_of_a_repository_are_for_it_alone() {
    let server = Server::start(|request| match request.header("authorization") {
        _ if request.target.starts_with("/token") => {
            let login = request.header("authorization").unwrap().trim_start_matches("Basic ");
            Reply::new(200).body(format!(r#"{{"token":"{}"}}"#, login.trim_end_matches('=')))
        }
        None => Reply::new(401).with("www-authenticate", "Bearer realm=\"/token\""),
        Some(_) => manifest(),
    })
    .await;
    let mut options = ClientOptions::default();
    let registry = RegistryOptions { plain_http: true, ..RegistryOptions::default() };
    options.registries.insert(server.registry(), registry);
    options.credentials = Some(Arc::new(|_, repository| {
        let username = match repository {
            None => "host",
            Some("team/app") => "app",
            Some(_) => return None,
        };
        let (username, password) = (username.to_owned(), "pw".to_owned());
        let credentials = Credentials::Basic { username, password };
        Some(Found { credentials, place: "a file".to_owned() })
    }));
    let client = impatient(options).unwrap();
    for image in ["team/app:1", "team/other:1", "team/app:2"] {
        client.manifest(&server.image(image)).await.unwrap();
    }
    let bearer = |login: &str| format!("Bearer {}", STANDARD.encode(login).trim_end_matches('='));
    let [app, host] = ["app:pw", "host:pw"].map(bearer);
    let asked = server.asked();
    let sent = asked.iter().filter(|asked| !asked.target.starts_with("/token"));
    let sent: Vec<_> = sent
        .map(|asked| (asked.target.trim_start_matches("/v2/team/"), asked.header("authorization")))
        .collect();
    let wanted = [
        ("app/manifests/1", None),
        ("app/manifests/1", Some(app.as_str())),
        ("other/manifests/1", Some(host.as_str())),
        ("app/manifests/2", Some(app.as_str())),
    ];
    assert_eq!(sent, wanted);
}

#[tokio::test]
async fn k11_strange_token_answers_are_taken_or_refused_never_trusted() {
    let huge = format!(r#"{{"token":"{}"}}"#, "x".repeat(2 << 20));
    for (answer, works) in [
        (r#"{"token":"t","expires_in":-5}"#, true),
        (r#"{"access_token":"t","expires_in":1e99}"#, true),
        (r#"{"token":"","access_token":""}"#, false),
        (r#"{"token":"a\nb"}"#, false),
        ("<html>", false),
        (huge.as_str(), false),
    ] {
        let text = answer.to_owned();
        let server = Server::start(move |request| {
            if request.target.starts_with("/token") {
                return Reply::new(200).body(&text);
            }
            match request.header("authorization") {
                Some(_) => manifest(),
                None => Reply::new(401).with("www-authenticate", "Bearer realm=\"/token\""),
            }
        })
        .await;
        let result = server.client(|_| {}).manifest(&server.image("a:1")).await;
        assert_eq!(result.is_ok(), works, "{result:?}");
    }
}

#[tokio::test]
async fn r20_a_gitea_whose_realm_names_another_host_is_asked_at_its_own() {
    let server = Server::start(|request| {
        if request.target.starts_with("/v2/token") {
            assert!(request.header("authorization").unwrap().starts_with("Basic "));
            assert!(request.target.contains("scope=*"), "{}", request.target);
            return Reply::new(200).body(br#"{"token":"t"}"#);
        }
        match request.header("authorization") {
            Some("Bearer t") => manifest(),
            _ => Reply::new(401).with(
                "www-authenticate",
                "Bearer realm=\"https://gitea.example/v2/token\",service=\"container_registry\",scope=\"*\"",
            ),
        }
    })
    .await;
    let client = server.client(|options| options.credentials = basic());
    client.manifest(&server.image("a/b:1")).await.unwrap();
}

#[tokio::test]
async fn a_gitea_that_misses_the_owner_is_explained() {
    let server = Server::start(|request| match request.target.as_str() {
        "/api/v1/version" => Reply::new(200).body(br#"{"version":"1.24.3"}"#),
        _ => Reply::new(404),
    })
    .await;
    let error =
        push(&server.client(|_| {}), &server.image("demo:v1.0"), b"x", &[]).await.unwrap_err();
    let RegistryError::Refused { help: Some(help), .. } = &error else { panic!("{error:?}") };
    let registry = server.registry();
    assert_eq!(
        help,
        &format!("Gitea needs an owner: did you mean {registry}/giteaadmin/demo:v1.0?")
    );
}

#[tokio::test]
async fn loopback_may_speak_plain_http_and_nobody_else_may() {
    let server = Server::start(|_| manifest()).await;
    let client = impatient(ClientOptions::default()).unwrap();
    client.manifest(&server.image("a:1")).await.unwrap();
    let local: Reference =
        format!("registry.localtest.me:{}/a:1", server.address.port()).parse().unwrap();
    let error = client.manifest(&local).await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::Tls { reason, .. } if reason.contains("plain-http")),
        "{error}"
    );
    let mut options = ClientOptions::default();
    let insecure = RegistryOptions { insecure: true, ..RegistryOptions::default() };
    options.registries.insert(local.registry().to_owned(), insecure);
    impatient(options).unwrap().manifest(&local).await.unwrap();
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let server =
        Server::start(|request| {
            if request.target == "/token" {
                let form = String::from_utf8(request.body.clone()).unwrap();
                assert!(form.contains(
                    "grant_type=refresh_token&client_id=idpbuilder&refresh_token=identity"
                ));
                return Reply::new(200).body(br#"{"access_token":"t"}"#);
            }
            match request.header("authorization") {
                Some("Bearer t") => manifest(),
                _ => Reply::new(401).with("www-authenticate", "Bearer realm=\"/token\",service=s"),
            }
        })
        .await;
    let client = server.client(|options| {
        options.credentials = Some(Credentials::IdentityToken("identity".to_owned()));
    });
    client.manifest(&server.image("a:1")).await.unwrap();
    assert_eq!(server.lines(), ["GET /v2/a/manifests/1", "POST /token", "GET /v2/a/manifests/1"]);
}
