//! The embedded registry's address, certificate and login, kept below the home folder.

use std::{fs, io::Write as _, net::SocketAddr, os::unix::fs::OpenOptionsExt as _};

use idpbuilder::{exec::EmbeddedSetup, plan::EMBEDDED_ADDRESS, serve::Login, trust::Identity};

use super::{
    failure::{CliError, ENVIRONMENT},
    setup,
};

/// Name that clients log in with.
const USERNAME: &str = "idpbuilder";
/// Random bytes in a generated password.
const PASSWORD_BYTES: usize = 24;

/// Address, certificate and login; made when they are not there.
pub(super) fn setup() -> Result<EmbeddedSetup, CliError> {
    let folder = setup::private_folder("embedded")?;
    let identity = Identity::load_or_make(&folder)
        .map_err(|error| CliError::new(ENVIRONMENT, format!("embedded registry: {error}")))?;
    let path = folder.join("password");
    let password = match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => {
            let password = random_password();
            let mut options = fs::OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
            file.and_then(|mut file| writeln!(file, "{password}")).map_err(|error| {
                CliError::new(ENVIRONMENT, format!("{}: {error}", path.display()))
            })?;
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
