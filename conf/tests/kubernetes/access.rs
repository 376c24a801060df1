//! Who an API server is, and who asks it: certificates and tokens, and others in their place.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use conf::source::kubernetes::reflector::Failure;
use conf::source::kubernetes::{Access, Api};
use tempfile::TempDir;

use super::apiserver::{ApiServer, Store};
use super::certificates::Authority;
use super::runtime;

const NODES: &str = "/api/v1/nodes";

/// How long it may take until new credentials are taken up.
const PATIENCE: Duration = Duration::from_secs(20);

struct Setting {
    store: Store,
    folder: TempDir,
}

impl Setting {
    fn new() -> Self {
        let (store, folder) = (Store::new(1), tempfile::tempdir().unwrap());
        Self { store, folder }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        // As kubelets replace what they project, in one step.
        fs::write(path.with_extension("new"), content).unwrap();
        fs::rename(path.with_extension("new"), &path).unwrap();
        path
    }

    /// A client of the server, who believes this CA and says this of itself.
    async fn client(&self, server: &ApiServer, ca: &Path, user: &str) -> Api {
        let cluster = format!("certificate-authority: '{}'", ca.display());
        let kubeconfig = self.file("kubeconfig", &server.kubeconfig_of(&cluster, user));
        let access = Access {
            kubeconfig: Some(kubeconfig),
            renew_pause: Duration::from_millis(10),
            ..Access::default()
        };
        Api::new(access).await.unwrap()
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// What the server answers, in words where it does not.
async fn asked(api: &Api) -> Result<(), String> {
    api.get(NODES).await.map(|_| ()).map_err(|failure| failure.to_string())
}

async fn until_answered(api: &Api) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = asked(api).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_server_is_believed_only_with_a_certificate_of_the_right_authority_for_its_name() {
    runtime().block_on(async {
        let setting = Setting::new();
        let (right, wrong) = (Authority::new("right"), Authority::new("wrong"));
        let [right_file, wrong_file] = [("right.crt", &right), ("wrong.crt", &wrong)]
            .map(|(name, authority)| setting.file(name, &authority.pem()));
        let store = &setting.store;
        let tls = right.server(&["127.0.0.1"]);
        let server = ApiServer::serve_tls(store.clone(), listener(), tls).unwrap();
        let user = "token: secret";
        let api = setting.client(&server, &right_file, user).await;
        asked(&api).await.unwrap();

        let known = store.requests().len();
        let api = setting.client(&server, &wrong_file, user).await;
        let error = asked(&api).await.unwrap_err();
        assert!(error.contains("invalid peer certificate: UnknownIssuer"), "{error}");
        assert!(error.contains("is not of the CA that this node was given"), "{error}");
        drop(server);

        let tls = right.server(&["other.example"]);
        let server = ApiServer::serve_tls(store.clone(), listener(), tls).unwrap();
        let api = setting.client(&server, &right_file, user).await;
        let error = asked(&api).await.unwrap_err();
        assert!(error.contains("other.example") && error.contains("api_servers"), "{error}");
        assert_eq!(store.requests().len(), known, "nobody was told a token");
    });
}

#[test]
fn a_token_is_sent_and_a_new_one_is_taken_up_from_its_file() {
    runtime().block_on(async {
        let setting = Setting::new();
        let authority = Authority::new("ca");
        let ca = setting.file("ca.crt", &authority.pem());
        let token = setting.file("token", "one");
        let tls = authority.server(&["127.0.0.1"]);
        let server = ApiServer::serve_tls(setting.store.clone(), listener(), tls).unwrap();
        setting.store.set_tokens(&["one"]);
        let user = format!("tokenFile: '{}'", token.display());
        let api = setting.client(&server, &ca, &user).await;
        asked(&api).await.unwrap();

        setting.store.set_tokens(&["two"]);
        let refused = api.get(NODES).await.unwrap_err();
        assert!(matches!(refused, Failure::Refused { status: 401, .. }), "{refused:?}");
        setting.file("token", "two\n");
        until_answered(&api).await;
    });
}

#[test]
fn a_new_authority_is_taken_up_from_its_file() {
    runtime().block_on(async {
        let setting = Setting::new();
        let (old, new) = (Authority::new("old"), Authority::new("new"));
        let ca = setting.file("ca.crt", &old.pem());
        let tls = old.server(&["127.0.0.1"]);
        let server = ApiServer::serve_tls(setting.store.clone(), listener(), tls).unwrap();
        let address: SocketAddr = server.address();
        let api = setting.client(&server, &ca, "token: secret").await;
        asked(&api).await.unwrap();

        drop(server);
        let listener = TcpListener::bind(address).unwrap();
        let tls = new.server(&["127.0.0.1"]);
        let _server = ApiServer::serve_tls(setting.store.clone(), listener, tls).unwrap();
        let error = asked(&api).await.unwrap_err();
        assert!(error.contains("invalid peer certificate"), "{error}");
        setting.file("ca.crt", &new.pem());
        until_answered(&api).await;
    });
}

#[test]
fn a_client_has_its_own_certificate_where_the_kubeconfig_names_one() {
    runtime().block_on(async {
        let setting = Setting::new();
        let authority = Authority::new("ca");
        let ca = setting.file("ca.crt", &authority.pem());
        let tls = authority.server_for_clients(&["127.0.0.1"]);
        let server = ApiServer::serve_tls(setting.store.clone(), listener(), tls).unwrap();
        let api = setting.client(&server, &ca, "token: secret").await;
        let error = asked(&api).await.unwrap_err();
        assert!(error.contains("CertificateRequired"), "{error}");

        let (certificate, key) = authority.client("system:node:n1");
        let user = format!(
            "client-certificate: '{}', client-key: '{}'",
            setting.file("client.crt", &certificate).display(),
            setting.file("client.key", &key).display()
        );
        let api = setting.client(&server, &ca, &user).await;
        asked(&api).await.unwrap();
    });
}
