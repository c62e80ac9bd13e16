"""``raftkit storage``: look at, check, copy and move the store of a node that does not run."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raftkit_cli.failures import CliError
from raftkit_cli.offline import (
    Meter,
    Parts,
    check_free,
    identity_fields,
    parts_of,
    run,
    settings_of,
    snapshot_fields,
    snapshot_words,
    state_fields,
    store_options,
)
from raftkit_cli.options import Invocation, VerbGroup, pass_invocation
from raftkit_cli.output import human_bytes
from raftkit_cli.verbs.version import own_version

if TYPE_CHECKING:
    from raftkit_core.offline.move import Copied
    from raftkit_core.offline.verify import StoreReport

_dry_run = click.option("--dry-run", is_flag=True, help="Only say what it would do.")


@click.group(cls=VerbGroup, name="storage", no_args_is_help=True)
def storage() -> None:
    """Check, back up, restore and move a node's store.

    The node must not run meanwhile. Its store is named as for raftkit node run: --id, --data-dir, --storage, or -c.
    """


@storage.command("info")
@store_options
@pass_invocation
def info(invocation: Invocation, /, **flags: Any) -> None:
    """Whose store it is, how large, and where its log begins and ends."""
    from raftkit_core.offline.store import open_store

    parts = parts_of(settings_of(invocation, flags))

    async def look() -> dict[str, Any]:
        async with open_store(parts.log, parts.snapshots, parts.context) as store:
            found = await store.log.info()
            return {
                "adapter": found.adapter,
                "location": found.location,
                "size_bytes": found.size_bytes,
                "durability": found.durability,
                "details": found.details,
                "identity": identity_fields(store.identity),
                "log": state_fields(await store.log.read_state()),
                "snapshot": snapshot_fields(await store.snapshots.current()),
            }

    data = run(look())

    def human() -> None:
        identity, log, snapshot = data["identity"], data["log"], data["snapshot"]
        out = invocation.out
        out.line(f"{data['location']}  {data['adapter']}, {human_bytes(data['size_bytes'])}, {data['durability']}")
        out.line(f"node {identity['node']} of {identity['cluster']}, cluster {identity['cluster_id'] or 'none yet'}")
        out.line(f"store {identity['store_id']}" + (f", retired: {identity['retired']}" if identity["retired"] else ""))
        for name in ("last", "committed", "purged"):
            out.line(f"{name:9} {_log_id_words(log[name])}")
        out.line(f"snapshot  {'none' if snapshot is None else 'up to ' + _log_id_words(snapshot['last'])}")

    invocation.out.result("storage.info", data, human)


def _log_id_words(fields: dict[str, Any] | None) -> str:
    return "none" if fields is None else f"T{fields['term']}-{fields['node']}.{fields['index']}"


@storage.command("verify")
@store_options
@pass_invocation
def verify(invocation: Invocation, /, **flags: Any) -> None:
    """Read every entry, the vote, the identity and the snapshot against their checksums. Exit 10 if any is damaged."""
    from raftkit_core.offline.verify import verify_store

    parts = parts_of(settings_of(invocation, flags))
    report = run(verify_store(parts.log, parts.snapshots, parts.context, progress=Meter(invocation.out)))
    is_unnamed = run(_check_coverage(report, parts))
    data = _report_fields(report)
    if report.findings:
        for finding in report.findings:
            invocation.out.note(f"damaged: {finding.part}, {finding.where}: {finding.problem}")
        count = len(report.findings) + report.findings_left_off
        first = report.findings[0]
        raise CliError(
            "STORAGE_CORRUPT",
            f"{count} {'part is' if count == 1 else 'parts are'} damaged in"
            f" {report.location or parts.context.data_dir}; the first: {first.part}, {first.where}: {first.problem}",
            hint="if the node runs a durable state machine nothing is damaged: name it, as in --state-machine"
            " sqlite-kv:kv.db"
            if is_unnamed and len(report.findings) == 1
            else "keep the files; start the node with an empty folder, then: raftkit member rejoin"
            f" {parts.context.node_id}",
            data=data,
        )

    def human() -> None:
        assert report.identity is not None, "else it would be a finding"
        out = invocation.out
        out.line(f"{report.location} is sound: node {report.identity.node_id}, store {report.identity.store_id}")
        out.line(f"log       {report.entries} entries, {human_bytes(report.entry_bytes)}, sha256 {report.log_sha256}")
        out.line(f"snapshot  {snapshot_words(report.snapshot)}")

    invocation.out.result("storage.verify", data, human)


async def _check_coverage(report: StoreReport, parts: Parts) -> bool:
    """What is purged must be in a snapshot, or in the data of a durable machine. Says whether it may be in the data of
    one that was not named."""
    from raftkit_core.errors import StorageError
    from raftkit_core.offline.machine import applied_by
    from raftkit_core.types.log_id import index_of

    purged = None if report.state is None else report.state.last_purged
    covered = None if report.snapshot is None else report.snapshot.last_log_id
    damaged = any(finding.part == "snapshot" for finding in report.findings)
    if parts.machine.durable:
        try:
            applied = (await applied_by(parts.machine, parts.context)).applied
        except StorageError as error:
            if index_of(purged) > index_of(covered):
                report.found("state machine", parts.machine.name, error.message)
            return False
        covered = max(covered, applied, key=index_of)
    if damaged or index_of(purged) <= index_of(covered):
        return False
    if parts.machine.durable:
        report.found(
            "state machine",
            parts.machine.name,
            f"the log is purged up to {purged}, the machine and the snapshot end at {covered}",
        )
        return False
    report.found("snapshot", "current snapshot", f"the log is purged up to {purged}, the snapshot ends at {covered}")
    return True


def _report_fields(report: StoreReport) -> dict[str, Any]:
    return {
        "location": report.location,
        "identity": identity_fields(report.identity),
        "log": state_fields(report.state),
        "entries": report.entries,
        "entry_bytes": report.entry_bytes,
        "log_sha256": report.log_sha256,
        "snapshot": snapshot_fields(report.snapshot),
        "findings": [
            {"part": finding.part, "where": finding.where, "problem": finding.problem} for finding in report.findings
        ],
        "findings_left_off": report.findings_left_off,
    }


@storage.command("backup")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@store_options
@_dry_run
@pass_invocation
def backup(invocation: Invocation, /, file: Path, dry_run: bool, **flags: Any) -> None:
    """Write log, vote, identity and snapshot to one new FILE, checked and read back."""
    check_free(file)
    parts = parts_of(settings_of(invocation, flags))
    if dry_run:
        report = _sound(invocation, flags)
        data = {**_report_fields(report), "file": str(file), "written": False}
        invocation.out.result(
            "storage.backup", data, lambda: invocation.out.line(f"would write {report.entries} entries to {file}")
        )
        return

    copied = run(back_up_parts(invocation, parts, file))
    data = {**_copied_fields(copied), "file": str(file), "written": True}

    def human() -> None:
        invocation.out.line(
            f"{file}: {copied.entries} entries, snapshot {snapshot_words(copied.snapshot)};"
            f" {human_bytes(copied.file_bytes)}, sha256 {copied.sha256}"
        )

    invocation.out.result("storage.backup", data, human)


async def back_up_parts(invocation: Invocation, parts: Any, file: Path) -> Copied:
    """A backup of a store that no node runs on, its durable machine's state included."""
    from raftkit_core.offline.machine import cover_purged
    from raftkit_core.offline.move import back_up
    from raftkit_core.offline.store import open_store

    meter = Meter(invocation.out)
    async with open_store(parts.log, parts.snapshots, parts.context) as store:
        await cover_purged(store, parts.machine, parts.context, snapshot_id=secrets.token_hex(16), progress=meter)
        return await back_up(store, file, created_ms=int(time.time() * 1000), version=own_version(), progress=meter)


def _copied_fields(copied: Copied) -> dict[str, Any]:
    return {
        "location": copied.location,
        "identity": identity_fields(copied.identity),
        "log": state_fields(copied.state),
        "entries": copied.entries,
        "snapshot": snapshot_fields(copied.snapshot),
        "size_bytes": copied.file_bytes,
        "sha256": copied.sha256,
    }


def _sound(invocation: Invocation, flags: dict[str, Any]) -> StoreReport:
    """Raises: CliError if the store is damaged."""
    from raftkit_core.offline.verify import verify_store

    parts = parts_of(settings_of(invocation, flags))
    report = run(verify_store(parts.log, parts.snapshots, parts.context, progress=Meter(invocation.out)))
    if report.findings:
        first = report.findings[0]
        raise CliError(
            "STORAGE_CORRUPT", f"{first.part}, {first.where}: {first.problem}", hint="raftkit storage verify"
        )
    return report


@storage.command("restore")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@store_options
@_dry_run
@pass_invocation
def restore(invocation: Invocation, /, file: Path, dry_run: bool, **flags: Any) -> None:
    """Make a store out of a backup FILE, where no store is yet.

    It is an older copy, so it gets a store id of its own: a node started on it does not vote before it has rejoined
    (raftkit member rejoin), or the cluster was begun anew from it (raftkit recover).
    """
    from raftkit_core.offline.archive import BackupFile
    from raftkit_core.offline.move import copied_of
    from raftkit_core.offline.move import restore as restore_backup

    held = BackupFile(file)
    held.check()
    identity = held.header.identity
    flags["node_id"] = flags["node_id"] or (None if invocation.config_path else identity.node_id)
    flags["cluster"] = flags["cluster"] or (None if invocation.config_path else identity.cluster)
    settings = settings_of(invocation, flags)
    if (settings.node_id, settings.config.cluster) != (identity.node_id, identity.cluster):
        raise CliError(
            "IDENTITY",
            f"{file} is of node {identity.node_id} of {identity.cluster}, not of {settings.node_id} of"
            f" {settings.config.cluster}",
            hint="leave --id and --cluster out: the backup knows them",
        )
    copied = copied_of(held, str(settings.data_dir))
    if not dry_run:
        invocation.confirm(f"Restore the store of {identity.node_id} into {settings.data_dir}?")
        parts = parts_of(settings, make_folder=True)
        copied = run(
            restore_backup(
                held,
                parts.log,
                parts.snapshots,
                parts.context,
                new_store_id=secrets.token_hex(16),
                progress=Meter(invocation.out),
            )
        )
    data = {**_copied_fields(copied), "file": str(file), "written": not dry_run}

    def human() -> None:
        out = invocation.out
        if dry_run:
            out.line(
                f"{file} is sound; would restore {copied.entries} entries of {identity.node_id} to {copied.location}"
            )
            return
        out.line(f"{copied.location}: {copied.entries} entries, snapshot {snapshot_words(copied.snapshot)}")
        out.note(
            f"this store has a new id: start the node, then raftkit member rejoin {identity.node_id};"
            f" if the whole cluster is lost: raftkit recover {identity.node_id}={settings.data_dir}"
        )

    invocation.out.result("storage.restore", data, human)


@storage.command("migrate")
@click.option("--from", "from_url", required=True, metavar="URL", help="Where the log is.")
@click.option("--to", "to_url", required=True, metavar="URL", help="Where it shall be. No store may be there.")
@click.option(
    "--to-data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Move to another folder too. [default: stay]",
)
@store_options
@_dry_run
@pass_invocation
def migrate(
    invocation: Invocation, /, from_url: str, to_url: str, to_data_dir: Path | None, dry_run: bool, **flags: Any
) -> None:
    """Move a node's log, vote, identity and snapshot to another adapter.

    The old store is retired durably before the new one may be used; interrupted, run it again. Afterwards start the
    node with --storage as given to --to.

    \b
    raftkit storage migrate --id n1 --from sqlite:raft.db --to redis://127.0.0.1:6379/0
    """
    from raftkit_core.offline.machine import cover_purged
    from raftkit_core.offline.move import Place
    from raftkit_core.offline.move import migrate as move
    from raftkit_core.offline.store import open_store
    from raftkit_core.plugins.url import AdapterUrl

    flags.pop("storage")
    source_settings = settings_of(invocation, {**flags, "storage": from_url})
    target_flags = flags if to_data_dir is None else {**flags, "data_dir": to_data_dir}
    target_settings = settings_of(invocation, {**target_flags, "storage": to_url})
    source = parts_of(source_settings)
    from_text, to_text = AdapterUrl.parse(from_url).masked(), AdapterUrl.parse(to_url).masked()
    target_settings.plugins.find("storage", AdapterUrl.parse(to_url).scheme)
    if from_text == to_text and source_settings.data_dir.resolve() == target_settings.data_dir.resolve():
        raise CliError(
            "USAGE", f"--from and --to are both {from_text} in {source_settings.data_dir}", hint="name another place"
        )
    if dry_run:
        report = _sound(invocation, {**flags, "storage": from_url})
        data = {**_report_fields(report), "from": from_text, "to": to_text, "written": False}
        invocation.out.result(
            "storage.migrate", data, lambda: invocation.out.line(f"would move {report.entries} entries to {to_text}")
        )
        return
    invocation.confirm(f"Move the store of {source_settings.node_id} from {from_text} to {to_text}?")
    target = parts_of(target_settings, make_folder=True)
    meter = Meter(invocation.out)
    is_same_place = _snapshots_stay(source_settings, target_settings)

    async def work() -> Copied:
        if not is_same_place:
            async with open_store(source.log, source.snapshots, source.context) as store:
                await cover_purged(
                    store, source.machine, source.context, snapshot_id=secrets.token_hex(16), progress=meter
                )
        fresh = parts_of(source_settings)
        return await move(
            Place(fresh.log, fresh.snapshots, fresh.context, from_text),
            Place(target.log, target.snapshots, target.context, to_text),
            copy_snapshots=not is_same_place,
            progress=meter,
        )

    copied = run(work())
    data = {**_copied_fields(copied), "from": from_text, "to": to_text, "written": True}

    def human() -> None:
        invocation.out.line(f"{copied.location}: {copied.entries} entries, store {copied.identity.store_id}")
        invocation.out.note(f"start the node with --storage {to_text}; the old store is retired and can be deleted")

    invocation.out.result("storage.migrate", data, human)


def _snapshots_stay(source: Any, target: Any) -> bool:
    """Whether both sides keep snapshots (and a durable machine's data) in the same place."""
    if source.data_dir.resolve() != target.data_dir.resolve():
        return False
    if source.snapshots is not None:
        return True
    from raftkit_core.clock import SystemClock
    from raftkit_core.types.adapter import AdapterContext

    context = AdapterContext(source.node_id, clock=SystemClock(), data_dir=source.data_dir.resolve())
    return all(each.plugins.paired_snapshot_storage(each.storage, context) is None for each in (source, target))


__all__ = ["back_up_parts", "storage"]
