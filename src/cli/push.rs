//! `push`: an image of the store to its registry.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use idpbuilder::{
    event::Event,
    exec::{Embedded, ExecError, NamedBy},
    image,
    oci::{Codec, Reference},
    plan::EMBEDDED_ADDRESS,
    registry::{Client, ClientOptions, Credentials, RegistryOptions},
    report::seconds,
    sandbox::CancelFlag,
    store::{ImageRecord, Store},
};

use super::{
    Global, credentials,
    failure::{CONFIGURATION, CliError},
    images, login, setup,
};

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder push gitea.cnoe.localtest.me:8443/giteaadmin/demo:v1\n",
    "  idpbuilder push --username admin --password-stdin reg.example.com/demo:v1 < password"
))]
pub(super) struct PushArgs {
    /// Names of images in the store.
    #[arg(required = true)]
    images: Vec<String>,
    #[command(flatten)]
    access: Access,
    /// Compression of layers that have no compressed form yet.
    #[arg(long, value_enum, default_value_t = CodecName::Gzip)]
    compression: CodecName,
}

/// How a registry is talked to, by flags.
#[derive(clap::Args, Clone, Default)]
pub(super) struct Access {
    /// User name for the registry.
    #[arg(short, long)]
    pub(super) username: Option<String>,
    /// Token or password for the registry (`--password-stdin` keeps it out of the process list).
    #[arg(long, conflicts_with = "password_stdin")]
    pub(super) token: Option<String>,
    /// Reads the password from standard input.
    #[arg(long)]
    pub(super) password_stdin: bool,
    /// Accepts any certificate, and plain HTTP.
    #[arg(long)]
    pub(super) insecure: bool,
}

/// Names of compressions.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum CodecName {
    /// Plain tar.
    Uncompressed,
    /// What every registry and runtime takes.
    Gzip,
    /// Smaller and faster; runtimes of the last years take it.
    Zstd,
}

impl From<CodecName> for Codec {
    fn from(name: CodecName) -> Self {
        match name {
            CodecName::Uncompressed => Self::Plain,
            CodecName::Gzip => Self::Gzip,
            CodecName::Zstd => Self::Zstd,
        }
    }
}

impl Access {
    /// Options of a client for `registry`, which the user named, from these flags and the surroundings.
    pub(super) fn client_options(&self, registry: &str) -> Result<ClientOptions, CliError> {
        self.options_naming(registry, BTreeSet::from([registry.to_owned()]))
    }

    /// The same where the user named other registries.
    pub(super) fn options_naming(
        &self,
        registry: &str,
        named: BTreeSet<String>,
    ) -> Result<ClientOptions, CliError> {
        let mut options = client_options(named)?;
        let password = match (&self.token, self.password_stdin) {
            (Some(token), _) => Some(token.clone()),
            (None, true) => Some(login::read_password()?),
            (None, false) => None,
        };
        let credentials = match (&self.username, password) {
            (Some(username), Some(password)) => {
                Some(Credentials::Basic { username: username.clone(), password })
            }
            (None, Some(token)) => Some(Credentials::Bearer(token)),
            (Some(_), None) => match credentials::from_environment() {
                Some((Credentials::Basic { password, .. } | Credentials::Bearer(password), _)) => {
                    let username = self.username.clone().unwrap_or_default();
                    Some(Credentials::Basic { username, password })
                }
                Some((Credentials::IdentityToken(_), _)) | None => {
                    return Err(CliError::new(CONFIGURATION, "--username without a password")
                        .with_help("add --token TOKEN or --password-stdin"));
                }
            },
            (None, None) => None,
        };
        let mut settings = options.registries.remove(registry).unwrap_or_default();
        settings.insecure = self.insecure;
        settings.credentials = credentials.or(settings.credentials);
        options.registries.insert(registry.to_owned(), settings);
        Ok(options)
    }
}

/// Options of a client that knows what the surroundings know; the user names the registries `named`.
pub(super) fn client_options(named: BTreeSet<String>) -> Result<ClientOptions, CliError> {
    let mut registries = BTreeMap::new();
    if named.contains(EMBEDDED_ADDRESS) || super::embedded::is_made()? {
        let authority = super::embedded::setup()?.identity.authority_pem;
        let ca_pem = Some(authority.into_bytes());
        let settings = RegistryOptions { ca_pem, ..RegistryOptions::default() };
        registries.insert(EMBEDDED_ADDRESS.to_owned(), settings);
    }
    Ok(ClientOptions {
        registries,
        credentials: Some(Arc::new(move |registry: &str, repository: Option<&str>| {
            let named_by = if named.contains(registry) { NamedBy::User } else { NamedBy::Others };
            credentials::find(registry, repository, named_by)
        })),
        proxies: setup::proxies(),
        trusted_certificates: Some(setup::home()?.join("certs")),
        ..ClientOptions::default()
    })
}

pub(super) fn push(global: &Global, args: &PushArgs) -> Result<ExitCode, CliError> {
    let store = setup::store()?;
    // What is compressed for this push is nobody's yet.
    let _lease = store.lease()?;
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    store.stop_writing_when(&cancel);
    for name in &args.images {
        let work = push_one(global, args, (&store, &cancel), name);
        runtime.block_on(work)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn push_one(
    global: &Global,
    args: &PushArgs,
    (store, cancel): (&Store, &CancelFlag),
    name: &str,
) -> Result<(), CliError> {
    let record = images::find_one(store, name)?;
    let reference: Reference = match &record.reference {
        Some(reference) => images::parse(reference)?,
        None => images::parse(name)?,
    };
    let image = (store, &record);
    send(global, &args.access, image, (&reference, args.compression.into()), cancel).await
}

/// Pushes what the store has to where it is to be, and prints where that is.
pub(super) async fn send(
    global: &Global,
    access: &Access,
    (store, record): (&Store, &ImageRecord),
    (reference, codec): (&Reference, Codec),
    cancel: &CancelFlag,
) -> Result<(), CliError> {
    let started = Instant::now();
    let mut options = access.client_options(reference.registry())?;
    let emit = setup::emitter(global);
    // As in a run: the embedded registry is there while something is pushed to it.
    let mut embedded = None;
    if reference.registry() == EMBEDDED_ADDRESS {
        let setup = super::embedded::setup()?;
        let server = Embedded::start(store, &setup).await.map_err(ExecError::from)?;
        if let Some(text) = server.warning() {
            emit(Event::Warning { image: None, text });
        }
        options.registries.entry(EMBEDDED_ADDRESS.to_owned()).or_default().port =
            Some(server.port());
        embedded = Some(server);
    }
    let client = Client::new(options)?;
    let shown = reference.familiar();
    emit(Event::ImageStarted { image: shown.clone() });
    let pushed = setup::until_cancelled(cancel, async {
        let upload = image::upload(store, &client, record, reference, codec, &shown, &emit).await?;
        image::publish(&client, &upload).await
    });
    let pushed = pushed.await;
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
    let duration = started.elapsed();
    if let Ok(digest) = &pushed {
        let (image, reference) = (shown.clone(), reference.to_string());
        emit(Event::Pushed { image, reference, digest: *digest, duration });
    }
    emit(Event::Finished { ok: pushed.is_ok(), duration });
    let digest = pushed?;
    store.flush()?;
    let time = seconds(duration.as_secs_f64());
    setup::print(&format!("{reference}@{digest}\n"));
    if !global.quiet {
        setup::tell(&format!("pushed in {time}"));
    }
    Ok(())
}
