//! `serve`: the embedded registry, until it is stopped.

use std::{net::SocketAddr, process::ExitCode, sync::atomic::Ordering, time::Duration};

use idpbuilder::serve::{ServeError, ServeOptions, Server};

use super::{
    embedded,
    failure::{CliError, ENVIRONMENT},
    setup,
};

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder serve\n",
    "  idpbuilder serve --address 127.0.0.1:5001"
))]
pub(super) struct ServeArgs {
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long)]
    address: Option<SocketAddr>,
    /// Plain HTTP, for clients on this machine that cannot be told the certificate.
    #[arg(long)]
    plain_http: bool,
    /// Lets everybody on this machine in.
    #[arg(long)]
    no_login: bool,
}

pub(super) fn serve(args: &ServeArgs) -> Result<ExitCode, CliError> {
    let store = setup::store()?;
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    let identity = embedded::setup()?;
    let folder = setup::home()?.join("embedded");
    let options = ServeOptions {
        store,
        address: args.address.unwrap_or(identity.address),
        identity: (!args.plain_http).then_some(identity.identity),
        login: (!args.no_login).then_some(identity.login.clone()),
    };
    runtime.block_on(async {
        let server = Server::start(options).await.map_err(|error| explain(&error))?;
        let scheme = if args.plain_http { "http" } else { "https" };
        let port = server.address().port();
        let mut text = format!("serving {scheme}://localhost:{port}/v2/ ; ^C ends it\n");
        if !args.plain_http {
            let file = folder.join("authority.pem");
            text.push_str(&format!("  certificate   {}\n", file.display()));
        }
        if !args.no_login {
            let file = folder.join("password");
            text.push_str(&format!(
                "  login         {}, password in {}\n",
                identity.login.username,
                file.display()
            ));
        }
        setup::print(&text);
        while !cancel.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server.stop().await;
        Ok(ExitCode::SUCCESS)
    })
}

fn explain(error: &ServeError) -> CliError {
    CliError::new(ENVIRONMENT, error.to_string())
        .with_help("--address 127.0.0.1:0 takes a free port")
}
