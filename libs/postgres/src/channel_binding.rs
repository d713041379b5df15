//! `tls-server-end-point` of RFC 5929: the hash of the server's certificate, by which SCRAM proves
//! that nobody sits between the two ends of the TLS connection.

use rustls::crypto::{hash::Hash, ring::cipher_suite};

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// The binding for `certificate` (DER), or `None` if its signature uses a hash that is not at hand
/// here; SCRAM then does without binding.
pub(crate) fn tls_server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let hash = hash_of(signature_algorithm(certificate)?)?;
    Some(hash.hash(certificate).as_ref().to_vec())
}

/// The hash that goes with a signature algorithm. MD5 and SHA-1 are replaced by SHA-256, as the RFC
/// demands.
fn hash_of(algorithm: &[u8]) -> Option<&'static dyn Hash> {
    const RSA: [u8; 8] = [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01];
    const ECDSA: [u8; 6] = [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04];
    let rsa = algorithm.strip_prefix(&RSA);
    let ecdsa = algorithm.strip_prefix(&ECDSA);
    match (rsa, ecdsa) {
        (Some([4 | 5 | 11]), _) | (_, Some([1] | [3, 2])) => sha256(),
        (Some([12]), _) | (_, Some([3, 3])) => sha384(),
        _ => None,
    }
}

fn sha256() -> Option<&'static dyn Hash> {
    cipher_suite::TLS13_AES_128_GCM_SHA256
        .tls13()
        .map(|suite| suite.common.hash_provider)
}

fn sha384() -> Option<&'static dyn Hash> {
    cipher_suite::TLS13_AES_256_GCM_SHA384
        .tls13()
        .map(|suite| suite.common.hash_provider)
}

/// The object identifier in `Certificate { tbsCertificate, signatureAlgorithm { oid, … }, … }`.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (fields, _) = take(certificate, SEQUENCE)?;
    let (_to_be_signed, rest) = take(fields, SEQUENCE)?;
    let (algorithm, _) = take(rest, SEQUENCE)?;
    take(algorithm, OBJECT_IDENTIFIER).map(|(identifier, _)| identifier)
}

/// Splits off one DER element with this tag: its content and what follows.
fn take(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = bytes.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7F => (usize::from(first), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
            (
                digits
                    .iter()
                    .fold(0, |length, digit| length << 8 | usize::from(*digit)),
                rest,
            )
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn certificate(oid: &[u8]) -> Vec<u8> {
        let element = |tag, content: &[u8]| {
            let length = u16::try_from(content.len()).unwrap().to_be_bytes();
            [&[tag, 0x82], &length[..], content].concat()
        };
        let algorithm = element(SEQUENCE, &element(OBJECT_IDENTIFIER, oid));
        element(
            SEQUENCE,
            &[element(SEQUENCE, &[7; 300]), algorithm].concat(),
        )
    }

    #[test]
    fn the_hash_follows_the_signature_algorithm() {
        let rsa = |last| [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, last];
        let length = |oid: &[u8]| tls_server_end_point(&certificate(oid)).map(|hash| hash.len());
        assert_eq!(length(&rsa(5)), Some(32));
        assert_eq!(length(&rsa(11)), Some(32));
        assert_eq!(length(&rsa(12)), Some(48));
        assert_eq!(length(&rsa(13)), None);
        assert_eq!(
            length(&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 3, 2]),
            Some(32)
        );
        assert_eq!(length(&[0x2B, 0x65, 0x70]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_certificate_or_not(bytes: Vec<u8>) {
            let _ = tls_server_end_point(&bytes);
        }
    }
}
