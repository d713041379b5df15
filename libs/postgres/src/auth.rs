//! Proving who we are: the exchange between the startup message and `AuthenticationOk`.

use fallible_iterator::FallibleIterator;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::{
        backend::{AuthenticationSaslBody, Message},
        frontend,
    },
};

use crate::{
    ClientError, Password,
    transport::{Incoming, Transport},
};

/// Who logs in, and with what.
pub(crate) struct Login<'a> {
    pub(crate) user: &'a str,
    pub(crate) password: Option<&'a Password>,
    /// The binding to the TLS connection, if there is one.
    pub(crate) end_point: Option<Vec<u8>>,
}

/// Answers the server's first request, and what follows it until it says that we are in.
pub(crate) async fn authenticate(
    transport: &mut Transport,
    login: Login<'_>,
    request: Message,
) -> Result<(), ClientError> {
    match request {
        Message::AuthenticationOk => return Ok(()),
        Message::AuthenticationCleartextPassword => {
            let password = login.secret()?;
            transport.queue(|out| frontend::password_message(password, out))?;
        }
        Message::AuthenticationMd5Password(body) => {
            let hash = md5_hash(login.user.as_bytes(), login.secret()?, body.salt());
            transport.queue(|out| frontend::password_message(hash.as_bytes(), out))?;
        }
        Message::AuthenticationSasl(body) => scram(transport, login, &body).await?,
        other => return Err(unsupported(&other)),
    }
    transport.flush().await?;
    match recv(transport).await? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(ClientError::protocol(
            "the server goes on asking after the password",
        )),
    }
}

impl Login<'_> {
    fn secret(&self) -> Result<&[u8], ClientError> {
        let missing = || ClientError::PasswordRequired {
            user: self.user.to_owned(),
        };
        self.password
            .map(|password| password.expose().as_bytes())
            .ok_or_else(missing)
    }
}

/// SCRAM-SHA-256. Both sides prove that they know the password; the server's proof is demanded
/// before `AuthenticationOk` is looked at.
async fn scram(
    transport: &mut Transport,
    login: Login<'_>,
    offered: &AuthenticationSaslBody,
) -> Result<(), ClientError> {
    let secret = login.secret()?.to_vec();
    let (mechanism, binding) = choose_mechanism(offered, login.end_point)?;
    let mut scram = ScramSha256::new(&secret, binding);
    transport.queue(|out| frontend::sasl_initial_response(mechanism, scram.message(), out))?;
    transport.flush().await?;

    let Message::AuthenticationSaslContinue(challenge) = recv(transport).await? else {
        return Err(ClientError::protocol(
            "no SCRAM challenge after the first SCRAM message",
        ));
    };
    // Thousands of rounds of HMAC: too long for a thread of the runtime. The number of rounds that
    // a server may ask for is bounded by `ScramSha256`.
    let data = challenge.data().to_vec();
    let hashed = tokio::task::spawn_blocking(move || scram.update(&data).map(|()| scram)).await;
    let mut scram = hashed
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(ClientError::Scram)?;
    transport.queue(|out| frontend::sasl_response(scram.message(), out))?;
    transport.flush().await?;

    let Message::AuthenticationSaslFinal(proof) = recv(transport).await? else {
        return Err(ClientError::protocol(
            "no proof of the server at the end of SCRAM",
        ));
    };
    scram.finish(proof.data()).map_err(ClientError::Scram)
}

fn choose_mechanism(
    offered: &AuthenticationSaslBody,
    end_point: Option<Vec<u8>>,
) -> Result<(&'static str, ChannelBinding), ClientError> {
    let offered: Vec<&str> = offered
        .mechanisms()
        .collect()
        .map_err(ClientError::Malformed)?;
    let plus = offered.contains(&SCRAM_SHA_256_PLUS);
    match (end_point, offered.contains(&SCRAM_SHA_256)) {
        (Some(hash), _) if plus => Ok((
            SCRAM_SHA_256_PLUS,
            ChannelBinding::tls_server_end_point(hash),
        )),
        // Says that we could bind: a server that could too then knows that its offer was removed.
        (Some(_), true) => Ok((SCRAM_SHA_256, ChannelBinding::unrequested())),
        (None, true) => Ok((SCRAM_SHA_256, ChannelBinding::unsupported())),
        (_, false) => Err(ClientError::UnsupportedAuthentication {
            method: offered.join(" or "),
        }),
    }
}

/// The next message of an exchange that knows no copy data.
pub(crate) async fn recv(transport: &mut Transport) -> Result<Message, ClientError> {
    match transport.recv().await? {
        Incoming::Other(message) => Ok(message),
        _ => Err(ClientError::protocol(
            "copy data before the login was finished",
        )),
    }
}

fn unsupported(message: &Message) -> ClientError {
    let method = match message {
        Message::AuthenticationGss | Message::AuthenticationGssContinue(_) => "gss",
        Message::AuthenticationSspi => "sspi",
        Message::AuthenticationKerberosV5 => "krb5",
        Message::AuthenticationScmCredential => "scm credential",
        _ => return ClientError::protocol("an unexpected message before the login was finished"),
    };
    ClientError::UnsupportedAuthentication {
        method: method.to_owned(),
    }
}
