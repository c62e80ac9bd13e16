"""``raftkit certs``: certificates for a cluster that has no CA of its own yet."""

from __future__ import annotations

from pathlib import Path

import click

from raftkit_cli.options import Invocation, VerbGroup, pass_invocation

DEFAULT_FOLDER = Path("certs")


@click.group(cls=VerbGroup, name="certs", no_args_is_help=True)
def certs() -> None:
    """Make and show TLS certificates."""


@certs.command("dev")
@click.argument("node_ids", nargs=-1, metavar="ID…", required=True)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME|IP",
    help="Where the nodes are reached, besides this machine. May be repeated.",
)
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Folder of the files. [default: {DEFAULT_FOLDER}]",
)
@pass_invocation
def make_dev_certs(
    invocation: Invocation, /, node_ids: tuple[str, ...], hosts: tuple[str, ...], folder: Path | None
) -> None:
    """Make a certificate for each node, signed by the CA in the folder, which is made if there is none.

    Whoever has ca.key can make peers: keep it where nodes are added, not on the nodes.

    \b
    raftkit certs dev n1 n2 n3 --host node.example
    """
    from raftkit_cli.cert_files import Authority
    from raftkit_cli.verbs.cluster import check_node_id

    for node_id in node_ids:
        check_node_id(node_id)
    folder = folder or DEFAULT_FOLDER
    authority, made = Authority.in_folder(folder)
    written = {}
    for node_id in dict.fromkeys(node_ids):
        cert, key = authority.issue(folder, node_id, hosts)
        written[node_id] = {"cert": str(cert), "key": str(key)}
    data = {"ca": str(folder / "ca.pem"), "ca_made": made, "nodes": written}

    def tell() -> None:
        invocation.out.line(f"{folder / 'ca.pem'}  {'made' if made else 'signs, as before'}")
        for files in written.values():
            invocation.out.line(f"{files['cert']}  {files['key']}")
        first = next(iter(written.values()))
        invocation.out.note(
            f"Use them: raftkit node run --network https://… --ca {folder / 'ca.pem'}"
            f" --cert {first['cert']} --key {first['key']}"
        )

    invocation.out.result("certs.dev", data, tell)


@certs.command("show")
@click.argument("files", nargs=-1, metavar="FILE…", required=True, type=click.Path(path_type=Path, dir_okay=False))
@pass_invocation
def show_certs(invocation: Invocation, /, files: tuple[Path, ...]) -> None:
    """Whose certificates these are, and how long they are valid."""
    from raftkit_cli.cert_files import describe

    described = [describe(path) for path in files]

    def tell() -> None:
        rows = [
            [one["file"], one["subject"], ", ".join(one["names"]) or "-", f"{one['days_left']} days"]
            for one in described
        ]
        invocation.out.table(["FILE", "SUBJECT", "NAMES", "VALID"], rows)

    invocation.out.result("certs.show", {"certificates": described}, tell)
