//! What the stand-in for alpine installs as `curl`: GET over plain HTTP, body to standard output.
//!
//! A static program of its own, since no distribution ships a static curl. It knows no TLS and no options.

use std::{
    env,
    error::Error,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    process::ExitCode,
};

fn main() -> ExitCode {
    let Some(url) = env::args().nth(1) else {
        eprintln!("curl: usage: curl URL");
        return ExitCode::from(2);
    };
    if url == "--version" {
        println!("curl 0 (stand-in) http");
        return ExitCode::SUCCESS;
    }
    match get(&url) {
        Ok(body) => io::stdout().write_all(&body).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("curl: {url}: {error}");
            ExitCode::from(7)
        }
    }
}

fn get(url: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let rest = url.strip_prefix("http://").ok_or("only http:// is known")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or("no end of the headers")?;
    Ok(answer.split_off(end + 4))
}
