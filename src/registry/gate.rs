//! A door for programs that make their own connections: it goes where a download may go, and nowhere else.
//!
//! SOCKS 5 (RFC 1928) with a password (RFC 1929) on loopback. Names are resolved here, at the moment of
//! each connection, so that no redirect and no second answer of a name server leads elsewhere. Knows
//! nothing of what travels.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

use super::{
    Client, DownloadError,
    download::Closed,
    site::{Reach, addresses},
};

const VERSION: u8 = 5;
/// Version of the exchange of name and password.
const LOGIN_VERSION: u8 = 1;
const BY_PASSWORD: u8 = 2;
const NO_WAY_IN: u8 = 0xff;
const CONNECT: u8 = 1;
const DONE: u8 = 0;
const NOT_ALLOWED: u8 = 2;
const UNREACHABLE: u8 = 4;
const UNKNOWN_COMMAND: u8 = 7;
/// How long a program may take to say where it wants to go.
const GREETING: Duration = Duration::from_secs(10);
/// Bytes of the password, before they are spelled as digits.
const PASSWORD_BYTES: usize = 16;

/// An open door; it closes when this is dropped.
pub struct Gate {
    url: String,
    refusal: Arc<Mutex<Option<Closed>>>,
    listening: JoinHandle<()>,
}

impl Gate {
    /// The door as a proxy that curl and git understand, with its password.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Why somebody was not let through, when somebody was not.
    #[must_use]
    pub fn refusal(&self) -> Option<DownloadError> {
        let refusal = self.refusal.lock().expect("nobody panics while holding it");
        refusal.as_ref().map(|closed| closed.told(closed.host.clone()))
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// What every connection is held to.
struct Rules {
    reach: Reach,
    password: String,
    connect: Duration,
    refusal: Arc<Mutex<Option<Closed>>>,
}

impl Client {
    /// Opens a door.
    ///
    /// # Errors
    ///
    /// When there is no port or no randomness to be had.
    pub async fn open_gate(&self, reach: Reach) -> Result<Gate, DownloadError> {
        let mut random = [0; PASSWORD_BYTES];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let password: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let url = format!("socks5h://gate:{password}@{address}");
        let refusal = Arc::default();
        let connect = self.limits().connect;
        let rules = Arc::new(Rules { reach, password, connect, refusal: Arc::clone(&refusal) });
        let listening = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let rules = Arc::clone(&rules);
                open.spawn(async move { serve(stream, &rules).await });
                while open.try_join_next().is_some() {}
            }
        });
        Ok(Gate { url, refusal, listening })
    }
}

async fn serve(mut stream: TcpStream, rules: &Rules) -> io::Result<()> {
    let greeting = timeout(GREETING, greet(&mut stream, rules)).await;
    let (host, port) = greeting.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    match connect(&host, port, rules).await {
        Ok(mut there) => {
            answer(&mut stream, DONE).await?;
            tokio::io::copy_bidirectional(&mut stream, &mut there).await.map(drop)
        }
        Err(error) => {
            let closed = error.get_ref().and_then(|inner| inner.downcast_ref::<Closed>());
            if let Some(closed) = closed {
                let mut refusal = rules.refusal.lock().expect("nobody panics while holding it");
                refusal.get_or_insert_with(|| closed.clone());
            }
            let code = if closed.is_some() { NOT_ALLOWED } else { UNREACHABLE };
            answer(&mut stream, code).await?;
            Err(error)
        }
    }
}

/// Host and port that somebody with the password wants to go to.
async fn greet(stream: &mut TcpStream, rules: &Rules) -> io::Result<(String, u16)> {
    let refused = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
    let [version, ways] = take(stream).await?;
    let mut offered = vec![0; ways.into()];
    stream.read_exact(&mut offered).await?;
    if version != VERSION || !offered.contains(&BY_PASSWORD) {
        stream.write_all(&[VERSION, NO_WAY_IN]).await?;
        return Err(refused("not SOCKS 5 with a password"));
    }
    stream.write_all(&[VERSION, BY_PASSWORD]).await?;
    let [_, user_bytes] = take(stream).await?;
    let mut user = vec![0; user_bytes.into()];
    stream.read_exact(&mut user).await?;
    let [password_bytes] = take(stream).await?;
    let mut password = vec![0; password_bytes.into()];
    stream.read_exact(&mut password).await?;
    let known = password == rules.password.as_bytes();
    stream.write_all(&[LOGIN_VERSION, u8::from(!known)]).await?;
    if !known {
        return Err(refused("a wrong password"));
    }
    let [_, command, _, kind] = take(stream).await?;
    if command != CONNECT {
        answer(stream, UNKNOWN_COMMAND).await?;
        return Err(refused("not a connection"));
    }
    let host = match kind {
        1 => IpAddr::V4(Ipv4Addr::from(take::<4>(stream).await?)).to_string(),
        4 => IpAddr::V6(Ipv6Addr::from(take::<16>(stream).await?)).to_string(),
        3 => {
            let [length] = take(stream).await?;
            let mut name = vec![0; length.into()];
            stream.read_exact(&mut name).await?;
            String::from_utf8(name).map_err(|_| refused("a name that is no text"))?
        }
        _ => return Err(refused("an unknown kind of address")),
    };
    Ok((host, u16::from_be_bytes(take(stream).await?)))
}

async fn take<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn answer(stream: &mut TcpStream, code: u8) -> io::Result<()> {
    // The address that we connect from is nobody's business.
    stream.write_all(&[VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0]).await
}

async fn connect(host: &str, port: u16, rules: &Rules) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for address in addresses(host, rules.reach).await? {
        let there = SocketAddr::new(address.ip(), port);
        match timeout(rules.connect, TcpStream::connect(there)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::from(io::ErrorKind::TimedOut),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::ClientOptions;

    /// What the door answers to somebody with a password who wants to go to a host.
    async fn asked(gate: &Gate, password: &str, host: &str, port: u16) -> Option<u8> {
        let address = gate.url().rsplit('@').next().unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        stream.write_all(&[VERSION, 1, BY_PASSWORD]).await.unwrap();
        take::<2>(&mut stream).await.unwrap();
        let login = [&[LOGIN_VERSION][..], &text("gate"), &text(password)].concat();
        stream.write_all(&login).await.unwrap();
        let [_, refused] = take(&mut stream).await.unwrap();
        if refused != 0 {
            return None;
        }
        let to = [&[VERSION, CONNECT, 0, 3][..], &text(host), &port.to_be_bytes()].concat();
        stream.write_all(&to).await.unwrap();
        let [_, code] = take(&mut stream).await.unwrap();
        Some(code)
    }

    #[tokio::test]
    async fn the_door_leads_where_a_download_may_go_and_only_who_knows_it() {
        let client = Client::new(ClientOptions::default()).unwrap();
        let there = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = there.local_addr().unwrap().port();
        for (reach, host, wanted) in [
            (Reach::NoMetadata, "localhost", DONE),
            (Reach::NoMetadata, "127.0.0.1", DONE),
            (Reach::NoMetadata, "169.254.169.254", NOT_ALLOWED),
            (Reach::Public, "localhost", NOT_ALLOWED),
            (Reach::Public, "127.0.0.1", NOT_ALLOWED),
            (Reach::Public, "::1", NOT_ALLOWED),
            (Reach::Public, "x.localtest.me", NOT_ALLOWED),
        ] {
            let gate = client.open_gate(reach).await.unwrap();
            let password = gate.url().split([':', '@']).nth(2).unwrap();
            assert_eq!(asked(&gate, password, host, port).await, Some(wanted), "{host} {reach:?}");
            assert_eq!(gate.refusal().is_some(), wanted == NOT_ALLOWED, "{host}");
            assert_eq!(asked(&gate, "guessed", host, port).await, None);
        }
    }
}
