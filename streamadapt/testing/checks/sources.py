"""Checks that every `Source` must pass: run them on your own source, as our tests do on ours.

A factory takes logs (for each partition, the values of its records, oldest first) and returns a
function. Each call of that function returns a new, unopened source over these records, with one
stream, which starts at the oldest record.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from streamadapt.engine.ports import Source
from streamadapt.errors import ConnectorError
from streamadapt.records import Record, StreamPartition

__all__ = ["CheckError", "Owner", "SourceFactory", "check_source", "yield_source_checks"]

Logs = Sequence[Sequence[bytes]]
SourceFactory = Callable[[Logs], Callable[[], Source]]
SourceCheck = Callable[[SourceFactory, int], None]

POLL_S = 0.2
IDLE_POLLS = 3
MAX_POLLS = 300


class CheckError(AssertionError):
    """A source or a sink does not keep its contract."""


class Owner:
    """A simple `PartitionOwner` for the checks.

    Parameters
    ----------
    starts : mapping of (partition) to offset
        Start positions; all other partitions start at None, the source's own start.
    """

    def __init__(self, starts: Mapping[int, int] | None = None) -> None:
        self._starts = dict(starts or {})
        self.streams: Sequence[str] = ()
        self.assigned: list[list[int]] = []
        self.revoked: list[list[int]] = []
        self.placed: dict[StreamPartition, int] = {}
        self.recreated: list[StreamPartition] = []
        self.identities: dict[StreamPartition, str] = {}

    def partitions_assigned(
        self, partitions: Sequence[int]
    ) -> Mapping[StreamPartition, int | None]:
        """Record the call, and return the starts."""
        self.assigned.append(list(partitions))
        return {
            StreamPartition(s, p): self._starts.get(p) for s in self.streams for p in partitions
        }

    def known_end(self, at: StreamPartition) -> int:
        """Return 0: nothing is known."""
        del at
        return 0

    def identity(self, at: StreamPartition) -> str | None:
        """Return the identity that the test has set; None without one."""
        return self.identities.get(at)

    def partitions_placed(
        self, starts: Mapping[StreamPartition, int], *, recreated: Collection[StreamPartition]
    ) -> None:
        """Record the call."""
        self.placed.update(starts)
        self.recreated += recreated

    def partitions_revoked(self, partitions: Sequence[int], *, lost: bool) -> None:
        """Record the call."""
        self.revoked.append(list(partitions))


def check_source(factory: SourceFactory, *, partitions: int = 2) -> None:
    """Run every check.

    Parameters
    ----------
    factory : SourceFactory
    partitions : int
        Number of partitions to use: 1 for sources with only one.

    Raises
    ------
    CheckError
        If a check fails; the message says what the source did.
    """
    for check in yield_source_checks():
        check(factory, partitions)


def yield_source_checks() -> Iterator[SourceCheck]:
    """Yield the checks, the most basic first."""
    yield check_owner_is_asked_first
    yield check_every_record_in_order
    yield check_resume_at_exact_offset
    yield check_position_at_end_is_fine
    yield check_empty_poll
    yield check_pause_holds_back_and_loses_nothing
    yield check_lag_counts_what_is_left
    yield check_read_up_to_passes_no_record
    yield check_identities_stay
    yield check_commit_moves_nothing
    yield check_seek_goes_back_and_forth
    yield check_close_is_idempotent


def check_owner_is_asked_first(factory: SourceFactory, partitions: int) -> None:
    """The owner is asked once, for exactly the existing partitions, before the first record."""
    source = factory(_logs(partitions, 3))()
    owner = _open(source)
    try:
        for _ in range(MAX_POLLS):
            found = _poll(source)
            _require(
                not found or owner.assigned != [],
                "records came before the owner was asked where to start",
            )
            if owner.assigned:
                break
        wanted = list(range(partitions))
        _require(
            [sorted(p) for p in owner.assigned] == [wanted],
            f"asked for {owner.assigned}, wanted once {wanted}",
        )
        _require(owner.revoked == [], f"took partitions away unasked: {owner.revoked}")
    finally:
        source.close()


def check_every_record_in_order(factory: SourceFactory, partitions: int) -> None:
    """Every record is delivered once, unchanged, in order, with stream, partition and offset."""
    logs = _logs(partitions, 25)
    source = factory(logs)()
    _open(source)
    try:
        _compare(_read(source, 25 * partitions), logs, source.streams[0])
        _require(
            source.state in ("connected", "ended"),
            f"state is {source.state!r} after everything was delivered",
        )
    finally:
        source.close()


def check_resume_at_exact_offset(factory: SourceFactory, partitions: int) -> None:
    """In each partition the record at the start offset is delivered first."""
    logs = _logs(partitions, 9)
    make = factory(logs)
    starts = {p: 3 + 2 * p for p in range(partitions)}
    source = make()
    _open(source, starts)
    try:
        wanted = sum(len(log) - starts[p] for p, log in enumerate(logs))
        _compare(_read(source, wanted), logs, source.streams[0], starts)
    finally:
        source.close()


def check_position_at_end_is_fine(factory: SourceFactory, partitions: int) -> None:
    """The offset after the last record is a valid position: no record is delivered, no error is
    raised."""
    source = factory(_logs(partitions, 4))()
    _open(source, dict.fromkeys(range(partitions), 4))
    try:
        found = _idle(source)
        _require(found == [], f"placed at the end, it delivered {_names(found)}")
    finally:
        source.close()


def check_empty_poll(factory: SourceFactory, partitions: int) -> None:
    """After the last record a poll returns an empty list, also with a time-out of 0."""
    source = factory(_logs(partitions, 2))()
    _open(source)
    try:
        _read(source, 2 * partitions)
        for timeout_s in (0.0, 0.05, 0.0):
            found: object = source.poll(timeout_s)
            _require(
                found == [],
                f"poll({timeout_s}) returned {found!r} after the last record, wanted []",
            )
    finally:
        source.close()


def check_pause_holds_back_and_loses_nothing(factory: SourceFactory, partitions: int) -> None:
    """A paused partition delivers nothing while others go on; afterwards it continues without a
    loss."""
    logs = _logs(partitions, 8)
    source = factory(logs)()
    _open(source, dict.fromkeys(range(partitions), 0))
    try:
        stream = source.streams[0]
        found: list[Record] = []
        while not found:  # the source fetches now: records may be in a buffer
            source.pause([])
            found = _some(source)
        held = StreamPartition(stream, 0)
        source.pause([held])
        meanwhile = _idle(source)
        wrong = [r for r in meanwhile if r.position.partition == 0]
        _require(not wrong, f"delivered {_names(wrong)} while {held} was paused")
        source.pause([])
        rest = _read(source, 8 * partitions - len(found) - len(meanwhile))
        _compare(found + meanwhile + rest, logs, stream)
    finally:
        source.close()


def check_lag_counts_what_is_left(factory: SourceFactory, partitions: int) -> None:
    """If the lag is known, delivered records plus lag are all records; at the end it is 0 or
    unknown."""
    total = 6
    source = factory(_logs(partitions, total))()
    _open(source)
    try:
        for delivered in _deliveries(source, partitions, total):
            for at, left in source.lag().items():
                there = delivered[at.partition] + left
                _require(
                    there == total,
                    f"{at}: {delivered[at.partition]} delivered, lag {left}, of {total}",
                )
    finally:
        source.close()


def _deliveries(source: Source, partitions: int, total: int) -> Iterator[dict[int, int]]:
    """Yield the number of records delivered by partition, before each poll and at the end.

    Raises
    ------
    AssertionError
        If fewer than `total` records of a partition are delivered in `MAX_POLLS` polls.
    """
    delivered = dict.fromkeys(range(partitions), 0)
    for _ in range(MAX_POLLS):
        yield delivered
        if sum(delivered.values()) == total * partitions:
            return
        for record in _poll(source):
            delivered[record.position.partition] += 1
    done = sum(delivered.values()) == total * partitions
    _require(done, f"delivered only {delivered} of {total} each")


def check_read_up_to_passes_no_record(factory: SourceFactory, partitions: int) -> None:
    """`read_up_to` returns no offset while a record before it is still undelivered."""
    total = 30
    source = factory(_logs(partitions, total))()
    _open(source)
    try:
        for delivered in _deliveries(source, partitions, total):
            for at, offset in source.read_up_to().items():
                there = delivered[at.partition]
                wrong = there < total and offset > there
                _require(
                    not wrong,
                    f"{at}: read_up_to says {offset}, but only {there} of {total} were delivered",
                )
    finally:
        source.close()


def check_identities_stay(factory: SourceFactory, partitions: int) -> None:
    """A stream's identity is the same in every source and stays the same; it may be missing."""
    make = factory(_logs(partitions, 5))
    found: list[dict[StreamPartition, str]] = []
    for _ in range(2):
        source = make()
        _open(source)
        try:
            _read(source, 5 * partitions)
            found += [dict(source.identities()) for _ in range(2)]
        finally:
            source.close()
    _require(all(one == found[0] for one in found), f"the same stream had the identities {found}")


def check_commit_moves_nothing(factory: SourceFactory, partitions: int) -> None:
    """`commit` is for monitoring: it changes neither the next records nor the start of a later
    source."""
    logs = _logs(partitions, 5)
    make = factory(logs)
    for commit in (True, False):
        source = make()
        _open(source)
        try:
            if commit:
                source.commit(
                    {StreamPartition(source.streams[0], p): 4 for p in range(partitions)}
                )
            found = _some(source)
            if commit:
                source.commit(
                    {StreamPartition(source.streams[0], p): 5 for p in range(partitions)}
                )
            _compare(found + _read(source, 5 * partitions - len(found)), logs, source.streams[0])
        finally:
            source.close()


def check_seek_goes_back_and_forth(factory: SourceFactory, partitions: int) -> None:
    """After `seek` the named partitions continue at the new offsets, or `seek` raises an error."""
    logs = _logs(partitions, 8)
    source = factory(logs)()
    _open(source)
    try:
        stream = source.streams[0]
        _compare(_read(source, 8 * partitions), logs, stream)
        try:
            source.seek({StreamPartition(stream, 0): 3})
        except ConnectorError:
            return
        starts = dict.fromkeys(range(partitions), 8) | {0: 3}
        _compare(_read(source, 5), logs, stream, starts)
        source.seek({StreamPartition(stream, p): None if p == 0 else 7 for p in range(partitions)})
        starts = dict.fromkeys(range(partitions), 7) | {0: 0}
        _compare(_read(source, 8 + partitions - 1), logs, stream, starts)
        source.seek({StreamPartition(stream, 0): 8})
        found = _idle(source)
        _require(not found, f"sent to the end, it delivered {_names(found)}")
    finally:
        source.close()


def check_close_is_idempotent(factory: SourceFactory, partitions: int) -> None:
    """`close` may be called at any time, several times, and before `open`."""
    make = factory(_logs(partitions, 1))
    unopened, opened = make(), make()
    unopened.close()
    _open(opened)
    _some(opened)
    for _ in range(3):
        opened.close()


def _logs(partitions: int, count: int) -> list[list[bytes]]:
    return [
        [b'{"partition":%d,"number":%d}' % (p, i) for i in range(count)] for p in range(partitions)
    ]


def _open(source: Source, starts: Mapping[int, int] | None = None) -> Owner:
    owner = Owner(starts)
    owner.streams = source.streams
    source.open(owner)
    return owner


def _read(source: Source, count: int) -> list[Record]:
    """Return `count` records and any records delivered right after them; none are expected."""
    records: list[Record] = []
    for _ in range(MAX_POLLS):
        if len(records) >= count:
            break
        records += _poll(source)
    return records + _idle(source)


def _poll(source: Source) -> list[Record]:
    found: object = source.poll(POLL_S)
    if not isinstance(found, list):
        raise CheckError(f"poll returned {found!r}, wanted a list")
    return found


def _some(source: Source) -> list[Record]:
    for _ in range(MAX_POLLS):
        if found := _poll(source):
            return found
    return []


def _idle(source: Source) -> list[Record]:
    return [record for _ in range(IDLE_POLLS) for record in _poll(source)]


def _compare(
    records: Sequence[Record], logs: Logs, stream: str, starts: Mapping[int, int] | None = None
) -> None:
    for p, log in enumerate(logs):
        start = (starts or {}).get(p, 0)
        got = [(r.position.offset, r.value) for r in records if r.position.partition == p]
        wanted = list(enumerate(log))[start:]
        _require(
            got == wanted,
            f"partition {p} from {start}: wanted offsets {start} to {len(log) - 1} once and in "
            f"order, "
            f"got {[offset for offset, _ in got]}, {sum(g in wanted for g in got)} with the "
            f"right value",
        )
    strange = [
        r
        for r in records
        if r.position.stream != stream or not 0 <= r.position.partition < len(logs)
    ]
    _require(not strange, f"records of unknown places: {_names(strange)}")


def _names(records: Sequence[Record]) -> str:
    return ", ".join(str(r.position) for r in records[:5])


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise CheckError(message)
