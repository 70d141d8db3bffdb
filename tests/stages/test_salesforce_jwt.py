"""Login by JWT on the wire: the sandbox's token endpoint checks signature, audience and expiry as Salesforce does."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from deploy.sandbox.salesforce.org import CLIENT_ID, USERNAME
from deploy.sandbox.salesforce.server import Sandbox
from models.errors import PausedError
from models.flow import Auth, Salesforce
from streams.salesforce.auth import Login


def key_file(folder: Path, name: str) -> rsa.RSAPrivateKey:
    """A key of our own, as the flow file names it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / name).write_bytes(pem)
    return key


def connection(url: str, name: str, **auth: str) -> Salesforce:
    return Salesforce(type="salesforce", url=url, auth=Auth(flow="jwt", client_id=CLIENT_ID, username=USERNAME, key_file=name, **auth))


async def test_a_key_the_app_knows_logs_in_and_others_pause_the_connection(tmp_path: Path) -> None:
    public = key_file(tmp_path, "ours.pem").public_key()
    key_file(tmp_path, "foreign.pem")
    known = tmp_path / "public.pem"
    known.write_bytes(public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    async with Sandbox(records=1, jwt_key=known) as org:
        token = await Login("acme", connection(org.url, "ours.pem"), tmp_path).token()
        assert token.instance_url == org.url
        for wrong in (connection(org.url, "foreign.pem"), connection(org.url, "ours.pem", audience="https://elsewhere.example")):
            with pytest.raises(PausedError):
                await Login("acme", wrong, tmp_path).token()
