# SPDX-License-Identifier: BSD-2-Clause
"""Keys and certificates for a test, made by openssl."""

import os
import shutil
import subprocess

TIMEOUT_SEC = 120


class Authority:
    """Makes keys and certificates in a directory of its own."""

    def __init__(self, directory):
        self.directory = directory
        os.makedirs(os.path.join(directory, "newcerts"), exist_ok=True)
        with open(os.path.join(directory, "index.txt"), "w", encoding="utf-8"):
            pass
        with open(os.path.join(directory, "ca.cnf"), "w", encoding="utf-8") as file:
            file.write(f"""
[ca]
default_ca = here
[here]
dir = {directory}
database = $dir/index.txt
new_certs_dir = $dir/newcerts
rand_serial = yes
certificate = $dir/ca-cert.pem
private_key = $dir/ca-key.pem
default_md = sha256
policy = any
default_crl_days = 30
unique_subject = no
[any]
organizationName = optional
commonName = supplied
[req]
distinguished_name = name
[name]
[v3_ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[v3_server]
basicConstraints = CA:FALSE
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost,IP:127.0.0.1,IP:::1
[v3_client]
basicConstraints = CA:FALSE
extendedKeyUsage = clientAuth
""")
        self.key("ca-key.pem")
        self.openssl("req", "-x509", "-new", "-config", "ca.cnf", "-extensions", "v3_ca", "-key",
                     "ca-key.pem", "-subj", "/O=Test/CN=CA", "-days", "30", "-out", "ca-cert.pem")

    def openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.PIPE, timeout=TIMEOUT_SEC)

    def key(self, name):
        self.openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out",
                     name)
        os.chmod(os.path.join(self.directory, name), 0o600)

    def issue(self, name, kind, common_name, *when):
        """NAME-cert.pem and NAME-key.pem; `when` is -startdate and -enddate."""
        self.key(f"{name}-key.pem")
        self.openssl("req", "-new", "-config", "ca.cnf", "-key", f"{name}-key.pem", "-subj",
                     f"/O=Test/CN={common_name}", "-out", f"{name}.csr")
        self.openssl("ca", "-batch", "-notext", "-config", "ca.cnf", "-extensions", kind, "-in",
                     f"{name}.csr", "-out", f"{name}-cert.pem", *(when or ("-days", "20")))

    def revoke(self, name):
        self.openssl("ca", "-config", "ca.cnf", "-revoke", f"{name}-cert.pem")
        self.openssl("ca", "-config", "ca.cnf", "-gencrl", "-out", "ca-crl.pem")

    def lay_out(self, directory, role, name, authority=None):
        """A directory as libnbd and QEMU want it: ca-cert.pem, ROLE-cert.pem, ROLE-key.pem."""
        os.makedirs(directory, exist_ok=True)
        shutil.copy(os.path.join((authority or self).directory, "ca-cert.pem"), directory)
        if name:
            for kind in ("cert", "key"):
                shutil.copy(os.path.join(self.directory, f"{name}-{kind}.pem"),
                            os.path.join(directory, f"{role}-{kind}.pem"))
        return directory


def write_psk(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o600)
