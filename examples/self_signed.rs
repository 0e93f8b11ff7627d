//! Makes a certificate for this machine's own names, for `make run-tls`.
//!
//! ```text
//! cargo run --example self_signed CERTIFICATE KEY    writes both files, in PEM
//! ```

use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(certificate), Some(key)) = (arguments.next(), arguments.next()) else {
        return Err("name two files: the certificate's and the key's".into());
    };
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names)?;
    std::fs::write(certificate, made.cert.pem())?;
    let mut options = OpenOptions::new();
    // Nobody else may read it.
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(key)?;
    file.write_all(made.signing_key.serialize_pem().as_bytes())?;
    Ok(())
}
