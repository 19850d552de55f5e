//! Certificates and keys for connections of sinks.

use std::{fs, io, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use super::spec::Tls;

/// How to connect.
///
/// # Errors
/// When a certificate or key cannot be read, with the file's name.
pub(super) fn client(tls: &Tls) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &tls.ca {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| named(path, error))?;
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots);
    Ok(Arc::new(match &tls.client {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            config.with_client_auth_cert(certificates(cert)?, self::key(key)?).map_err(|error| named(key, error))?
        }
    }))
}

/// The certificates of a PEM file; at least one.
pub(super) fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let pem = fs::read(path).map_err(|error| named(path, error))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|error| named(path, error))?;
    if certificates.is_empty() {
        return Err(named(path, "no certificate in it (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(certificates)
}

/// The private key of a PEM file.
pub(super) fn key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    let pem = fs::read(path).map_err(|error| named(path, error))?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| named(path, format!("no private key in it: {error}")))
}

fn named(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}
