//! The certificates that the user trusted, one PEM file a registry: `HOST:PORT.pem` or `HOST_PORT.pem`.
//!
//! The folder is 0700 and its files 0600; a file is replaced by a rename, never written in place. Knows
//! nothing of where the folder is: the caller says.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustls::pki_types::CertificateDer;

use super::{CertificateFacts, TrustError, parse_pem};

const SUFFIX: &str = "pem";

/// A folder of trusted certificates.
#[derive(Clone, Debug)]
pub struct TrustStore {
    folder: PathBuf,
}

/// One line of [`TrustStore::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    /// Host and port.
    pub registry: String,
    /// The file.
    pub path: PathBuf,
    /// What the first certificate in it says, or why it cannot be read.
    pub facts: Result<CertificateFacts, String>,
}

impl TrustStore {
    /// The store in `folder`, which need not be there yet.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Everything trusted, by registry.
    ///
    /// # Errors
    ///
    /// [`TrustError::Io`] when the folder is there and cannot be read.
    pub fn list(&self) -> Result<Vec<Trusted>, TrustError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.failed(&self.folder, error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| self.failed(&self.folder, error))?.path();
            let Some(registry) = registry_of(&path) else { continue };
            let facts = fs::read(&path)
                .map_err(|error| error.to_string())
                .and_then(|pem| first_facts(&pem, &path));
            found.push(Trusted { registry, path, facts });
        }
        found.sort_by(|a, b| (&a.registry, &a.path).cmp(&(&b.registry, &b.path)));
        Ok(found)
    }

    /// Certificates trusted for a registry; none when it has no file.
    ///
    /// # Errors
    ///
    /// [`TrustError::Io`] and [`TrustError::NotPem`]: a damaged file must not mean "no pin".
    pub fn read(&self, registry: &str) -> Result<Vec<CertificateDer<'static>>, TrustError> {
        let mut found = Vec::new();
        for path in self.candidates(registry)? {
            match fs::read(&path) {
                Ok(pem) => found.extend(parse_pem(&pem, &path.display().to_string())?),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.failed(&path, error)),
            }
        }
        Ok(found)
    }

    /// Trusts the certificates of a PEM text for a registry, in place of those trusted before.
    ///
    /// # Errors
    ///
    /// [`TrustError::NotPem`] when there is none in it, [`TrustError::Io`].
    pub fn trust(&self, registry: &str, pem: &[u8]) -> Result<PathBuf, TrustError> {
        let [path, other] = self.candidates(registry)?;
        let certificates = parse_pem(pem, registry)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(|error| self.failed(&self.folder, error))?;
        write_private(&path, super::to_pem(&certificates).as_bytes())
            .map_err(|error| self.failed(&path, error))?;
        if other != path {
            self.remove_file(&other)?;
        }
        Ok(path)
    }

    /// Takes trust in a registry away; says whether there was any.
    ///
    /// # Errors
    ///
    /// [`TrustError::Io`].
    pub fn remove(&self, registry: &str) -> Result<bool, TrustError> {
        let [path, other] = self.candidates(registry)?;
        let first = self.remove_file(&path)?;
        Ok((other != path && self.remove_file(&other)?) || first)
    }

    fn remove_file(&self, path: &Path) -> Result<bool, TrustError> {
        match fs::remove_file(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.failed(path, error)),
        }
    }

    /// The file that we write, and the other spelling that may be there.
    fn candidates(&self, registry: &str) -> Result<[PathBuf; 2], TrustError> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
        if registry.is_empty() || registry.starts_with('.') || !registry.bytes().all(good) {
            return Err(TrustError::NotRegistry(registry.to_owned()));
        }
        let name = registry.to_ascii_lowercase();
        let file = |stem: &str| self.folder.join(format!("{stem}.{SUFFIX}"));
        let underscored = name
            .rsplit_once(':')
            .map_or_else(|| name.clone(), |(host, port)| format!("{host}_{port}"));
        Ok([file(&name), file(&underscored)])
    }

    #[expect(clippy::unused_self, reason = "reads as what it is at the call")]
    fn failed(&self, path: &Path, source: io::Error) -> TrustError {
        TrustError::Io { path: path.to_owned(), source }
    }
}

fn registry_of(path: &Path) -> Option<String> {
    if path.extension()? != SUFFIX {
        return None;
    }
    let stem = path.file_stem()?.to_str()?;
    match stem.rsplit_once('_') {
        Some((host, port)) if port.parse::<u16>().is_ok() => Some(format!("{host}:{port}")),
        _ => Some(stem.to_owned()),
    }
}

fn first_facts(pem: &[u8], path: &Path) -> Result<CertificateFacts, String> {
    let certificates =
        parse_pem(pem, &path.display().to_string()).map_err(|error| error.to_string())?;
    let first = certificates.first().ok_or("no certificate")?;
    CertificateFacts::read(first).map_err(|error| error.to_string())
}

/// Writes a 0600 file by renaming it into place.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::{Identity, IdentityKind};

    fn certificate() -> Identity {
        Identity::make(&["localhost".to_owned()], IdentityKind::SelfSigned).unwrap()
    }

    #[test]
    fn what_is_trusted_is_read_back_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = TrustStore::new(&folder.path().join("certs"));
        assert_eq!(store.list().unwrap(), []);
        assert!(store.read("localhost:5000").unwrap().is_empty());
        let (first, second) = (certificate(), certificate());
        let path = store.trust("localhost:5000", first.certificate_pem.as_bytes()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let folder_mode = fs::metadata(path.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(folder_mode & 0o777, 0o700);
        store.trust("localhost:5000", second.certificate_pem.as_bytes()).unwrap();
        let read = store.read("LOCALHOST:5000").unwrap();
        assert_eq!(read, parse_pem(second.certificate_pem.as_bytes(), "x").unwrap());
        let listed = store.list().unwrap();
        assert_eq!(listed[0].registry, "localhost:5000");
        assert_eq!(listed[0].facts.as_ref().unwrap().names, ["localhost"]);
        assert!(store.remove("localhost:5000").unwrap());
        assert!(!store.remove("localhost:5000").unwrap());
        assert_eq!(store.list().unwrap(), []);
    }

    #[test]
    fn both_spellings_of_a_file_name_are_one_registry_and_damage_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let store = TrustStore::new(folder.path());
        let old = folder.path().join("reg.example.com_8443.pem");
        fs::write(&old, certificate().certificate_pem).unwrap();
        assert_eq!(store.read("reg.example.com:8443").unwrap().len(), 1);
        assert_eq!(store.list().unwrap()[0].registry, "reg.example.com:8443");
        fs::write(&old, "no pem").unwrap();
        assert!(matches!(store.read("reg.example.com:8443"), Err(TrustError::NotPem(_))));
        assert!(store.list().unwrap()[0].facts.is_err());
        assert!(store.remove("reg.example.com:8443").unwrap());
    }

    #[test]
    fn a_registry_name_cannot_leave_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let store = TrustStore::new(folder.path());
        for name in ["", "..", "../x", "a/b", ".hidden", "a\0b", "a b"] {
            assert!(matches!(store.read(name), Err(TrustError::NotRegistry(_))), "{name:?}");
        }
    }
}
