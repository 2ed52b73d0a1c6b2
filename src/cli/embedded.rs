//! The embedded registry's address, certificate and login, kept below the home folder.

use std::{
    fs, io::Write as _, net::SocketAddr, os::unix::fs::OpenOptionsExt as _, path::Path, sync::Arc,
};

use idpbuilder::{
    exec::{EmbeddedSetup, FindEmbedded},
    plan::EMBEDDED_ADDRESS,
    serve::Login,
    trust::Identity,
};

use super::{
    failure::{CliError, ENVIRONMENT},
    setup,
};

/// Where they are, below the home folder.
const FOLDER: &str = "embedded";
/// File with the password there: made after all else.
const PASSWORD: &str = "password";
/// Name that clients log in with.
const USERNAME: &str = "idpbuilder";
/// Random bytes in a generated password.
const PASSWORD_BYTES: usize = 24;

/// Address, certificate and login; made when they are not there.
pub(super) fn setup() -> Result<EmbeddedSetup, CliError> {
    let found = find_in(&setup::private_folder(FOLDER)?);
    found.map_err(|reason| CliError::new(ENVIRONMENT, format!("embedded registry: {reason}")))
}

/// The same when it is asked for: making a certificate waits for the disk.
pub(super) fn find() -> Result<FindEmbedded, CliError> {
    let folder = setup::private_folder(FOLDER)?;
    Ok(Arc::new(move || find_in(&folder)))
}

/// Whether there has been one: where not, nothing was ever put there, and nobody has to know its certificate.
pub(super) fn is_made() -> Result<bool, CliError> {
    Ok(setup::home()?.join(FOLDER).join(PASSWORD).exists())
}

fn find_in(folder: &Path) -> Result<EmbeddedSetup, String> {
    let identity = Identity::load_or_make(folder).map_err(|error| error.to_string())?;
    let path = folder.join(PASSWORD);
    let password = match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => {
            let password = random_password();
            let mut options = fs::OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
            file.and_then(|mut file| writeln!(file, "{password}"))
                .map_err(|error| format!("{}: {error}", path.display()))?;
            password
        }
    };
    let login = Login { username: USERNAME.to_owned(), password };
    Ok(EmbeddedSetup { address: address(), identity, login })
}

/// The loopback address that [`EMBEDDED_ADDRESS`] names.
pub(super) fn address() -> SocketAddr {
    let port = EMBEDDED_ADDRESS.rsplit(':').next().and_then(|port| port.parse().ok());
    let port = port.expect("the constant ends in a port");
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn random_password() -> String {
    let mut bytes = [0; PASSWORD_BYTES];
    getrandom::fill(&mut bytes).expect("the kernel has randomness");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
