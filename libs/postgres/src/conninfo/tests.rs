use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<ConnInfo, ConnInfoError> {
    text.parse()
}

fn tcp(name: &str, port: u16) -> Endpoint {
    Endpoint {
        host: Host::Tcp {
            name: name.to_owned(),
            addr: None,
        },
        port,
    }
}

#[test]
fn key_value_form_with_quoting() {
    let info =
        parse(r"host=db port = 6432 user='a b' password='it\'s \\ \'' connect_timeout=7").unwrap();
    assert_eq!(info.endpoints(), [tcp("db", 6432)]);
    assert_eq!(
        (info.user(), info.password().unwrap().expose()),
        ("a b", r"it's \ '")
    );
    assert_eq!(info.connect_timeout(), Some(Duration::from_secs(7)));
    assert_eq!(info.ssl_mode(), SslMode::Prefer);
}

#[test]
fn uri_form_with_everything() {
    let info = parse(
        "postgresql://me:p%40ss%3A@a:1,[::1]:2,c/db?sslmode=verify-full&sslrootcert=%2Fca.pem\
         &application_name=pal",
    )
    .unwrap();
    assert_eq!(
        info.endpoints(),
        [tcp("a", 1), tcp("::1", 2), tcp("c", 5432)]
    );
    assert_eq!(
        (info.user(), info.password().unwrap().expose()),
        ("me", "p@ss:")
    );
    assert_eq!(
        (info.dbname(), info.application_name()),
        (Some("db"), Some("pal"))
    );
    assert_eq!(
        (info.ssl_mode(), info.ssl_root_cert()),
        (SslMode::VerifyFull, Some("/ca.pem".as_ref()))
    );
}

#[test]
fn of_what_a_session_may_be_only_a_primary_can_be_asked_for() {
    let asked = |value: &str| {
        let info = parse(&format!("host=a,b user=me target_session_attrs={value}"));
        info.map(|info| info.primary_only())
    };
    assert_eq!(asked("any"), Ok(false));
    assert_eq!(
        (asked("primary"), asked("read-write")),
        (Ok(true), Ok(true))
    );
    for value in ["standby", "prefer-standby", "read-only", "x"] {
        assert!(
            matches!(asked(value), Err(ConnInfoError::Value { .. })),
            "{value}"
        );
    }
    let info = parse("host=a,b port=1,2 user=me").unwrap();
    let each: Vec<_> = info
        .each_endpoint()
        .map(|one| one.endpoints().to_vec())
        .collect();
    assert_eq!(each, [[tcp("a", 1)], [tcp("b", 2)]]);
}

#[test]
fn unix_sockets_in_both_forms() {
    for text in [
        "host=/run/pg user=me port=6000",
        "postgres://me@%2Frun%2Fpg:6000",
        "postgres://me@/?host=/run/pg&port=6000",
    ] {
        let info = parse(text).unwrap();
        assert_eq!(
            info.endpoints()[0].host,
            Host::Unix("/run/pg".into()),
            "{text}"
        );
        assert_eq!(info.endpoints()[0].to_string(), "/run/pg/.s.PGSQL.6000");
    }
}

#[test]
fn several_hosts_share_one_port_and_take_addresses() {
    let info = parse("host=a,b hostaddr=10.0.0.1,:: port=7 user=me").unwrap();
    let expected = [("a", "10.0.0.1"), ("b", "::")].map(|(name, addr)| Endpoint {
        host: Host::Tcp {
            name: name.to_owned(),
            addr: Some(addr.parse().unwrap()),
        },
        port: 7,
    });
    assert_eq!(info.endpoints(), expected);
}

#[test]
fn says_what_is_wrong() {
    for (text, says) in [
        ("host=a user=b colour=red", "unknown key \"colour\""),
        ("host=a user=b password='x", "not closed"),
        ("host=a user=b stray", "no = after it"),
        ("user=b", "lacks host"),
        ("host=a", "lacks user"),
        ("host=a user=b port=0", "port"),
        ("host=a,b user=b port=1,2,3", "port"),
        ("host=a user=b sslmode=on", "sslmode"),
        ("host=a user=b connect_timeout=soon", "connect_timeout"),
        ("postgresql://a@b/?x", "no ="),
        ("postgresql://a@b%2/", "two hex digits"),
        ("postgresql://a@[::1/", "no ]"),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn shows_what_was_written_and_no_default() {
    for (written, shown) in [
        (
            "host=localhost user=postgres",
            "host=localhost user=postgres",
        ),
        (
            "user = me connect_timeout=0 password=x sslmode='' host=/run/pg port=6000",
            "host=/run/pg port=6000 user=me password=*** connect_timeout=0",
        ),
        (
            "postgresql://me:x@a:1,b/db?sslmode=require",
            "host=a,b port=1, user=me password=*** dbname=db sslmode=require",
        ),
    ] {
        let info = parse(written).unwrap();
        let with_default = info
            .clone()
            .with_default_passfile(Some("/x".as_ref()), None);
        assert_eq!(info.redacted(), shown);
        assert_eq!(with_default.redacted(), shown);
        let again = parse(shown).unwrap();
        assert_eq!(
            (again.endpoints(), again.connect_timeout()),
            (info.endpoints(), info.connect_timeout())
        );
    }
    let named = parse("host=a user=b").unwrap().with_application_name("us");
    assert_eq!(named.redacted(), "host=a user=b application_name=us");
}

#[test]
fn no_form_of_printing_shows_the_password() {
    let info = parse("host=a user=b password=hunter2 sslmode=require").unwrap();
    for text in [info.to_string(), format!("{info:?}"), info.redacted()] {
        assert!(
            !text.contains("hunter2") && text.contains("password=***"),
            "{text}"
        );
    }
    let error = parse("host=a user=b password=hunter 2secret").unwrap_err();
    assert!(!format!("{error:?} {error}").contains("2secret"));
}

#[test]
fn the_password_file_of_the_string_goes_before_the_environment() {
    let [explicit, none] =
        ["host=a user=b passfile=/x", "host=a user=b"].map(|t| parse(t).unwrap());
    let (env, home) = (Some(Path::new("/env")), Some(Path::new("/home/me")));
    assert_eq!(
        explicit.with_default_passfile(env, home).passfile(),
        Some("/x".as_ref())
    );
    assert_eq!(
        none.clone().with_default_passfile(env, home).passfile(),
        Some("/env".as_ref())
    );
    let from_home = none.with_default_passfile(None, home);
    assert_eq!(from_home.passfile(), Some("/home/me/.pgpass".as_ref()));
}

proptest! {
    #[test]
    fn any_text_is_a_connection_string_or_an_error(text: String) {
        let _ = parse(&text);
        let _ = parse(&format!("postgresql://{text}"));
    }

    #[test]
    fn any_value_survives_quoting(user in "[^\0]{1,20}", name in "[^\0]{1,20}") {
        let pairs = [("host", "a".to_owned()), ("user", user), ("application_name", name)];
        let info = parse(&key_value::format(&pairs)).unwrap();
        prop_assert_eq!(info.user(), &pairs[1].1);
        prop_assert_eq!(parse(&info.redacted()).unwrap(), info);
    }
}
