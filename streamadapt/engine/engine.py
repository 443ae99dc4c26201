"""The loop: poll, decode, merge, observe, emit, checkpoint, drain."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from streamadapt.clock import Clock, SystemClock
from streamadapt.compiled import compilations
from streamadapt.engine.conditions import Standing
from streamadapt.engine.guarantees import delivery_of
from streamadapt.engine.lost_partitions import LostPartitions
from streamadapt.engine.metrics import Metrics, NullMetrics, StageTiming
from streamadapt.engine.metrics_start import zeros_of
from streamadapt.engine.partition import PartitionRunner
from streamadapt.engine.ports import DeadLetterSink, Sink, Source
from streamadapt.engine.reject_limit import BAD_SHARE_WINDOW, RejectLimit
from streamadapt.engine.rounds import ReleasedBatch, Turns
from streamadapt.engine.run_log import RunLog
from streamadapt.engine.settings import EngineSettings
from streamadapt.engine.summary import summarise
from streamadapt.engine.tally import Tally
from streamadapt.engine.time_watch import TimeWatch
from streamadapt.errors import EntryError, Loss, TransactionLostError
from streamadapt.pipeline.kernels import Step
from streamadapt.pipeline.keyed import KeyedPipeline
from streamadapt.pipeline.pipeline import Pipeline
from streamadapt.records import (
    DeadLetter,
    Entry,
    Label,
    Prediction,
    Record,
    Skipped,
    StreamPartition,
)
from streamadapt.state.fence import FencedError
from streamadapt.state.folder import folder_of
from streamadapt.state.manifest import CheckpointInfo
from streamadapt.state.store import CheckpointStore

__all__ = ["BAD_SHARE_WINDOW", "Codec", "Engine", "EngineSettings"]

_LOG = logging.getLogger("streamadapt")


class Codec(Protocol):
    """Turns records into entries and labels."""

    def decode(self, record: Record) -> Entry | Label:
        """Decode one record; raises `EntryError`."""
        ...


class Engine:
    """Runs one pipeline per partition between a source and a sink, with a delivery guarantee.

    Parameters
    ----------
    source : Source
    make_pipeline : callable () -> Pipeline or KeyedPipeline
        Called once per partition; every call must return a fresh pipeline with the same settings.
    sink : Sink
    codec : Codec
    dead_letters : DeadLetterSink
    settings : EngineSettings
    metrics : Metrics, optional
    clock : Clock, optional

    Attributes
    ----------
    on_checkpoint_step : callable of str, or None
        Called at every named step of a checkpoint; tests raise from it.
    heartbeat : int
        Counts up with every poll and every batch of records; shows a watchdog that the loop runs.
    kernels : sequence of (str, callable)
        What `run` compiles or loads before it opens the source: see `kernel_steps`.
    preparing : bool
        Whether `run` compiles or loads `kernels` right now.
    opened : bool
        Whether `run` has opened the source and restored the partitions assigned at once.
    drained : bool
        Whether `run` has processed and saved everything, so that only closing is left.
    closing : bool
        Whether a sink, the source or a folder is being closed right now.
    run_log : RunLog
    """

    def __init__(
        self,
        source: Source,
        make_pipeline: Callable[[], Pipeline | KeyedPipeline],
        sink: Sink,
        codec: Codec,
        dead_letters: DeadLetterSink,
        *,
        settings: EngineSettings | None = None,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.source = source
        self.make_pipeline = make_pipeline
        self.sink = sink
        self.codec = codec
        self.dead_letters = dead_letters
        self.settings = settings or EngineSettings()
        self.metrics = metrics or NullMetrics()
        self.clock = clock or SystemClock()
        self.delivery = delivery_of(
            self.settings.guarantee, sink, self.settings.checkpoint_every_s, self.clock
        )
        self.on_checkpoint_step: Callable[[str], None] | None = None
        self.runners: dict[int, PartitionRunner] = {}
        self._lost = LostPartitions()
        self.stopping = False
        self.heartbeat = 0
        self.kernels: Sequence[Step] = ()
        self.preparing = False
        self.opened = False
        self.drained = False
        self.closing = False
        self._thread: threading.Thread | None = None
        self._finished = False
        self.run_log = RunLog(self.clock)
        self._tally = Tally()
        self._ended = False
        # records not yet processed, where that is known
        self._behind: dict[StreamPartition, int] = {}
        self._stopped_at: float | None = None
        self._index = {stream: i for i, stream in enumerate(source.streams)}
        self._bad_share = RejectLimit(self.settings.max_bad_share)
        self.metrics.standings(self.standings)
        for one in (sink, dead_letters):
            one.break_off_when(self._given_up)
        self._last_checkpoint = self.clock.monotonic()
        self._turns = Turns(self.clock, self.settings.turn_s)
        self._timing = StageTiming(self.clock, self.metrics)
        self._paused: frozenset[StreamPartition] = frozenset()
        self._drifts_logged: dict[int, int] = {}
        self._time_watches: dict[int, TimeWatch] = {}
        self._state = ""

    def stop(self) -> None:
        """Ask `run` to drain and return; may be called from a signal handler or another thread.

        `run` stops after the current record. `EngineSettings.drain_s` later, sinks that support
        `Sink.break_off_when` stop waiting for deliveries and raise an error; a restart then
        replays from the last checkpoint.
        """
        if self._stopped_at is None:
            self._stopped_at = self.clock.monotonic()
        self.stopping = True

    def _given_up(self) -> bool:
        return (
            self._stopped_at is not None
            and self.clock.monotonic() - self._stopped_at >= self.settings.drain_s
        )

    def run(self) -> dict[str, Any]:
        """Run until `stop`, or until a finite source has ended and everything was processed.

        Returns
        -------
        dict
            `summary()`.

        Raises
        ------
        ConnectorError, CheckpointError
            For faults that waiting cannot fix. Nothing is lost: a restart replays everything after
            the last checkpoint.
        """
        self._thread, self._finished = threading.current_thread(), False
        try:
            return self._run()
        finally:
            self._finished = True

    @property
    def alive(self) -> bool:
        """Whether `run` has not begun, or has not ended yet and its thread is alive."""
        return not self._finished and (self._thread is None or self._thread.is_alive())

    def _run(self) -> dict[str, Any]:
        try:
            self._prepare()
            self.source.open(self)
            self.opened = True
            while not self.stopping and not self.step():
                pass
            while not self._last_checkpoint_done():
                while not self.stopping and not self.step():
                    pass
            self.drained = True
            summary = self.summary()
        except BaseException as failure:
            if isinstance(failure, FencedError):
                # another engine may own the partitions: send nothing more about them
                for runner in [*self.runners.values(), *self._lost.runners]:
                    self.delivery.fall_silent(runner)
            for error in self._close():
                _LOG.error("while closing after that: %s", error)
            raise
        for error in self._close():
            raise error
        _LOG.info(
            "stopped: %d entries, %d predictions", summary["entries"], summary["predictions"]
        )
        return summary

    def _prepare(self) -> None:
        """Compile what is not compiled yet: in the middle of the stream, predictions would wait
        for it, and a consumer group would lose this member."""
        before, began = compilations(), self.clock.monotonic()
        self.preparing = True
        for i, (name, prepare) in enumerate(self.kernels, 1):
            if self.stopping:
                break
            self.heartbeat += 1
            known = compilations()
            try:
                prepare()
            except Exception:
                if self.stopping:
                    raise
                # the pipeline meets it again, and handles it
                _LOG.debug("the kernels of %s were not prepared", name, exc_info=True)
            if compilations() > known:
                _LOG.info("compiled %s (%d of %d)", name, i, len(self.kernels))
        self.kernels, self.preparing = (), False
        if compilations() > before:
            took_s = self.clock.monotonic() - began
            _LOG.info("everything is compiled, after %.0f s", took_s)

    def _last_checkpoint_done(self) -> bool:
        """Write the last checkpoint; return False if a transaction was lost during it, and the
        records it covers must be processed again.

        If nothing is new since the last checkpoint, none is written: it would only push out older
        ones.
        """
        try:
            if any(runner.since_checkpoint for runner in self.runners.values()):
                self.checkpoint()
        except TransactionLostError as error:
            if self.stopping:
                raise
            self._lose(error)
            return False
        return True

    def look(self) -> None:
        """Check source, sink and dead letters for faults; the check itself writes the log lines.

        Called from any thread.
        """
        for side in (self.source, self.sink, self.dead_letters):
            _ = side.trouble

    @property
    def trouble(self) -> str:
        """Why no work can be done for now, in words for an operator; empty if no fault is known.

        Called from any thread.
        """
        sides = (self.sink, self.dead_letters, self.source)
        return next((why for side in sides if (why := side.trouble)), "") or self._lost.trouble

    def standings(self) -> dict[str, Standing]:
        """Return the condition of source, sink and dead letters at this moment, for metrics.

        Called from any thread.
        """
        standings = {
            "source": self.source.standing,
            "sink": self.sink.standing,
            "dead_letters": self.dead_letters.standing,
        }
        if why := self._lost.trouble:
            sink = standings["sink"]
            standings["sink"] = replace(sink, trouble=sink.trouble or why)
        return standings

    def step(self) -> bool:
        """Poll once and process the records; return True when a finite source is done.

        Tests run the engine step by step with this.
        """
        try:
            if len(self._lost):
                self._begin_again()
            return self._round()
        except TransactionLostError as error:
            self._lose(error)
            return False

    def _round(self) -> bool:
        self.heartbeat += 1
        waiting = any(runner.merge.ready for runner in self.runners.values())
        records = self.source.poll(0.0 if waiting else self.settings.poll_s)
        now = self.clock.monotonic()
        if records:
            with self._timing.stage("decode"):
                self._take_in(records, now)
        lag = self.source.lag()
        ended = self._watch_source(lag) == "ended"
        for runner in list(self.runners.values()):
            for i, stream in enumerate(runner.streams):
                left = lag.get(StreamPartition(stream, runner.partition))
                runner.merge.note_lag(i, left, now)
        self._take_turns(now, ended)
        for at, offset in self.source.read_up_to().items():
            if at.partition in self.runners:
                self.runners[at.partition].read_up_to(at, offset)
        self.look()
        self._note_lag(lag)
        self.run_log.tick(self._figures)
        self._apply_backpressure()
        if self._checkpoint_is_due():
            self.checkpoint()
        idle = not len(self._lost) and not any(runner.waiting for runner in self.runners.values())
        done = self._ended = ended and idle
        for runner in self.runners.values() if done else ():
            # the input has ended, unlike at a stop: process what still waits for more of it
            self._hand_out(runner, *runner.finish())
        return done

    # -- one round

    def _take_in(self, records: Sequence[Record], now: float) -> None:
        for record in records:
            at = record.position
            runner = self.runners.get(at.partition)
            if runner is None:
                # the partition was revoked during this poll: its new owner reads the record
                continue
            item: Entry | Label | DeadLetter
            if record.value is None and self.source.skips_tombstones:
                item = Skipped(record, "", "decode", "")
            else:
                item = self._decoded(runner, record)
            runner.merge.offer(self._index[at.stream], record, item, now)

    def _decoded(self, runner: PartitionRunner, record: Record) -> Entry | Label | DeadLetter:
        at = record.position
        try:
            return runner.clocks[at.stream].take(at.offset, self.codec.decode(record))
        except EntryError as error:
            return DeadLetter(record, error.reason.value, "decode", error.detail)

    def _take_turns(self, now: float, ended: bool) -> None:
        busy = [runner.partition for runner in self.runners.values() if len(runner.merge)]
        self._turns.round(
            busy,
            lambda partition, until: self._advance(self.runners[partition], now, until, ended),
        )
        for partition in busy:
            self._time_watches[partition].look_held(self.runners[partition].merge.held)

    def _advance(self, runner: PartitionRunner, now: float, until: float, ended: bool) -> bool:
        """Process released records in small batches until the time is up; return whether there may
        be more."""
        while not self.stopping:
            late = runner.merge.late_labels
            batch = ReleasedBatch(
                runner.merge, self.clock, now, until, ended=ended, stopping=lambda: self.stopping
            )
            if batch:
                self._process(runner, batch)
            for _ in range(runner.merge.late_labels - late):
                self.metrics.late_label()
            if not batch.count:
                return False
            if self.clock.monotonic() >= until:
                return True
        return False

    def _process(self, runner: PartitionRunner, released: ReleasedBatch) -> None:
        self.heartbeat += 1
        # a process that was suspended for a while must not write before this check
        runner.check_owner()
        predictions, letters = runner.process(released)
        self._hand_out(runner, predictions, letters)
        self._tally.add(runner, released.handed, letters)
        self._bad_share.add(released.count, letters)

    def _hand_out(
        self,
        runner: PartitionRunner,
        predictions: Sequence[Prediction],
        letters: Sequence[DeadLetter],
    ) -> None:
        with self._timing.stage("emit"):
            self._emit(predictions, letters)
        self._log_drifts(runner, predictions)
        self._time_watches[runner.partition].look(
            runner.pipeline.stats, letters, runner.out_of_order
        )
        self.metrics.pipeline(runner.partition, runner.pipeline.stats)

    def _emit(self, predictions: Sequence[Prediction], letters: Sequence[DeadLetter]) -> None:
        if predictions:
            self.sink.write(predictions)
            letters = [*letters, *self.sink.refused()]
        if letters:
            self.dead_letters.write(letters)
            self.run_log.refused(letters)
            for letter in letters:
                self.metrics.dead_letter(letter.reason, letter.stage)
                _LOG.debug(
                    "dead letter %s %s: %s", letter.record.position, letter.reason, letter.detail
                )

    def _log_drifts(self, runner: PartitionRunner, predictions: Sequence[Prediction]) -> None:
        stats = runner.pipeline.stats
        total = sum(stats.drifts.values())
        fresh = total - self._drifts_logged.get(runner.partition, 0)
        self._drifts_logged[runner.partition] = total
        for name, time in stats.drift_log[-fresh:] if fresh else ():
            _LOG.info("drift %s partition=%d event_time_ns=%d", name, runner.partition, time)
        for p in predictions:
            for done in p.reactions:
                _LOG.info(
                    "reaction %s partition=%d event_time_ns=%d", done, runner.partition, p.time
                )

    def _watch_source(self, lag: Mapping[StreamPartition, int]) -> str:
        state = self.source.state
        if state != self._state:
            _LOG.info("source is %s", state)
            self._state = state
        self.metrics.source_state(state)
        self._note_lag(lag)
        return state

    def _note_lag(self, left: Mapping[StreamPartition, int]) -> None:
        """Count the records not yet processed: those still in the source, and those that wait in
        the engine."""
        self._behind = {
            at: left[at] + len(runner.merge.queues[i])
            for runner in self.runners.values()
            for i, at in enumerate(
                StreamPartition(stream, runner.partition) for stream in runner.streams
            )
            if at in left
        }
        self.metrics.lag(self._behind)

    def _figures(self) -> dict[str, Any]:
        runners = [*self.runners.values(), *self._lost.runners]
        facts = self._tally.facts(runners, ended=self._ended)
        losses: dict[str, tuple[float, int]] = {}
        for runner in runners:
            stats = runner.pipeline.stats
            for role, cells in stats.loss_cells.items():
                total, before = losses.get(role, (0.0, 0))
                losses[role] = total + stats.loss_sum[role], before + cells
        lag = sum(self._behind.values()) if self._behind else None
        return {name: facts[name] for name in ("entries", "predictions")} | {
            "lag": lag,
            "losses": losses,
        }

    def _apply_backpressure(self) -> None:
        paused = {
            StreamPartition(stream, runner.partition)
            for runner in self.runners.values()
            for stream, queue in zip(runner.streams, runner.merge.queues, strict=True)
            if len(queue) >= self.settings.max_buffer
        } | {
            StreamPartition(stream, runner.partition)
            for runner in self._lost.runners
            for stream in runner.streams
        }
        if paused != self._paused:
            self._paused = frozenset(paused)
            self.source.pause(self._paused)

    # -- checkpoints

    def _checkpoint_is_due(self) -> bool:
        every = self.settings.checkpoint_every_entries
        done = max((runner.since_checkpoint for runner in self.runners.values()), default=0)
        if every is not None and done >= every:
            return True
        since_s = self.clock.monotonic() - self._last_checkpoint
        renew_s = self.delivery.renew_s
        if renew_s is not None and since_s >= renew_s:
            return bool(self.runners)
        return done > 0 and since_s >= self.settings.checkpoint_every_s

    def checkpoint(self) -> None:
        """Flush the sinks, save every partition, then commit the positions to the source.

        In any other order entries can be lost.
        """
        self._save(list(self.runners.values()))
        self._last_checkpoint = self.clock.monotonic()

    def _save(self, runners: Sequence[PartitionRunner]) -> None:
        self._step_reached("flush")
        self.sink.flush()
        self._emit((), self.sink.refused())
        self.dead_letters.flush()
        identities = self.source.identities()
        for runner in runners:
            runner.identities |= {
                at: known for at, known in identities.items() if at.partition == runner.partition
            }
            start = self.clock.monotonic()
            info = runner.save(self.settings.config_digest, self._step_reached)
            end = self.clock.monotonic()
            self.metrics.stage("checkpoint", end - start)
            if info is not None:
                self.metrics.checkpoint(runner.partition, end - start, info.size_bytes, end)
                _LOG.debug("checkpoint partition=%d sequence=%d", runner.partition, info.sequence)
            self._step_reached("commit")
            self.delivery.saved(runner)
            self._lost.committed(runner.partition)
            self._step_reached("committed")
            self.source.commit(runner.positions)

    def _step_reached(self, name: str) -> None:
        self.heartbeat += 1
        if self.on_checkpoint_step is not None:
            self.on_checkpoint_step(name)

    # -- partitions come and go (PartitionOwner)

    def partitions_assigned(
        self, partitions: Sequence[int]
    ) -> Mapping[StreamPartition, int | None]:
        """Load each partition's checkpoint and return where to read on."""
        wanted: dict[StreamPartition, int | None] = {}
        if count := self.source.partition_count:
            self.sink.expect_partitions(count)
            self.dead_letters.expect_partitions(count)
        for partition in partitions:
            self.heartbeat += 1
            runner = self.runners.get(partition) or self._lost.get(partition)
            if runner is None:
                runner = self._open_runner(partition)
            wanted.update(runner.wanted())
        return wanted

    def _open_runner(self, partition: int) -> PartitionRunner:
        runner = self._make_runner(partition, self._make_store(partition))
        try:
            info = self.delivery.resume(runner, self.settings.config_digest)
        except TransactionLostError as error:
            self._lost.add(runner, error, self.clock.monotonic())
            # read from the source's own start for now; `_begin_again` moves to the real position
            return runner
        except BaseException:
            runner.close()  # close it here: it is not in self.runners yet
            raise
        self._take_up(runner, info)
        return runner

    def _make_store(self, partition: int) -> CheckpointStore | None:
        if self.settings.checkpoint_path is None:
            return None
        folder = folder_of(self.settings.checkpoint_path).child(
            f"{self.source.streams[0]}-{partition}"
        )
        return CheckpointStore(
            folder,
            keep=self.settings.keep,
            shared=self.source.shared,
            guarantee=self.settings.guarantee,
        )

    def _make_runner(self, partition: int, store: CheckpointStore | None) -> PartitionRunner:
        pipeline = self.make_pipeline()
        pipeline.timing = self._timing
        wait_s, max_ahead_ns = self.settings.label_wait_s, self.settings.max_ahead_ns
        keys_path = (
            None
            if self.settings.keys_path is None
            else folder_of(self.settings.keys_path, "keys.path")
        )
        return PartitionRunner(
            partition, self.source.streams, pipeline, store, wait_s, max_ahead_ns, keys_path,
            max_behind_ns=self.settings.max_behind_ns, max_held=self.settings.max_buffer,
        )  # fmt: skip

    def _take_up(self, runner: PartitionRunner, info: CheckpointInfo | None) -> None:
        partition, stats = runner.partition, runner.pipeline.stats
        self.metrics.expect(partition, zeros_of(runner.pipeline))
        if runner.store is not None:
            self.metrics.damaged_checkpoints(partition, runner.store.damaged)
            runner.store.damaged = 0
        else:
            self.metrics.damaged_checkpoints(partition, 0)
        runner.began = True
        self.runners[partition] = runner
        self._time_watches[partition] = TimeWatch(partition, stats)
        self._tally.opened(runner)
        self._drifts_logged[partition] = sum(stats.drifts.values())
        self.metrics.pipeline(partition, stats)
        places = " ".join(f"{at}@{offset}" for at, offset in runner.positions.items())
        _LOG.info(
            "partition %d: %s",
            partition,
            f"resumes at {places}" if info else "starts without a checkpoint",
        )

    # -- a transaction is lost

    def _lose(self, error: TransactionLostError) -> None:
        """Stop the partitions whose transactions are void; `_begin_again` restarts them from their
        last commit."""
        for partition in error.partitions:
            if error.cause in (Loss.TAKEN, Loss.EXPIRED) and partition in self.runners:
                # if another engine owns the partition, this raises: it must not be restarted
                self.runners[partition].must_own()
            runner = self.runners.pop(partition, None)
            if runner is not None:
                self.metrics.transaction_lost(partition, error.cause.value)
                self.delivery.release(runner, lost=True)
                self._lost.add(runner, error, self.clock.monotonic())
        self._apply_backpressure()

    def _begin_again(self) -> None:
        """Restart lost partitions: load the state of the last commit, and move the source back to
        its positions.

        Raises
        ------
        FencedError
            If another engine owns the partition's checkpoints now, and so its transaction.
        """
        while (old := self._lost.due(self.clock.monotonic())) is not None:
            self.heartbeat += 1
            old.must_own()
            runner = self._lost.fresh(old.partition) or self._make_runner(old.partition, old.store)
            try:
                info = self.delivery.resume(runner, self.settings.config_digest)
            except TransactionLostError as error:
                self._lost.failed(old.partition, runner, error, self.clock.monotonic())
                return  # the broker does not answer: the other partitions would wait as long
            self._lost.pop(old.partition)
            self._take_up(runner, info)
            self._enter_again(runner, old)
            self.source.seek(runner.wanted())

    def _enter_again(self, runner: PartitionRunner, old: PartitionRunner) -> None:
        """Keep the start positions that the source chose and no commit covers yet: if the source
        were asked again, it could choose others.

        If the partition had never begun, no positions could be given to the source, and it chose
        its own instead: a restored position then takes precedence.
        """
        for at in old.recreated:
            runner.stream_recreated(at)
            self.delivery.stream_recreated(runner, at)
        runner.recreated = set(old.recreated)
        runner.placed(
            {at: n for at, n in old.entered.items() if old.began or at not in runner.positions}
        )

    def known_end(self, at: StreamPartition) -> int:
        """Return the offset after a stream's newest known record, from the guarantee."""
        return self.delivery.known_end(at)

    def identity(self, at: StreamPartition) -> str | None:
        """Return the identity of the stream that the checkpoint's position belongs to."""
        runner = self.runners.get(at.partition) or self._lost.get(at.partition)
        return None if runner is None else runner.identities.get(at)

    def partitions_placed(
        self, starts: Mapping[StreamPartition, int], *, recreated: Collection[StreamPartition]
    ) -> None:
        """Continue from the start positions that the source chose itself."""
        for at in recreated:
            offset = starts.get(at, 0)
            _LOG.warning(
                "%s was deleted and created again: it is read from %d, and all of it is new",
                at,
                offset,
            )
            if at.partition in self.runners:
                self.runners[at.partition].stream_recreated(at)
                self.delivery.stream_recreated(self.runners[at.partition], at)
        for runner in [*self.runners.values(), *self._lost.runners]:
            runner.recreated |= {at for at in recreated if at.partition == runner.partition}
            runner.placed(starts)

    def partitions_revoked(self, partitions: Sequence[int], *, lost: bool) -> None:
        """Save and release partitions; with ``lost`` only release them, since another engine may
        own them already."""
        runners = [self.runners.pop(p) for p in partitions if p in self.runners]
        void = [runner for p in partitions if (runner := self._lost.forget(p)) is not None]
        try:
            if runners and not lost:
                void += self._save_and_lose(runners)
        finally:
            for runner in [*runners, *(runner for runner in void if runner not in runners)]:
                self._tally.closed(runner)
                self.delivery.release(runner, lost=lost or runner in void)
                runner.close()
                self.metrics.forget(runner.partition)
                _LOG.info("partition %d: %s", runner.partition, "lost" if lost else "handed over")

    def _save_and_lose(self, runners: Sequence[PartitionRunner]) -> list[PartitionRunner]:
        """Save partitions that are handed over; return those whose transactions were lost: their
        next owner processes these records again."""
        left, void = list(runners), list[PartitionRunner]()
        while left:
            try:
                self._save(left)
                break
            except TransactionLostError as error:
                _LOG.warning("while partitions are handed over: %s", error)
                gone = [runner for runner in left if runner.partition in error.partitions]
                if not gone and not any(p in self.runners for p in error.partitions):
                    raise
                self._lose(error)  # the error may concern other partitions, too
                for runner in gone:
                    self.delivery.release(runner, lost=True)
                    left.remove(runner)
                void += gone
        return void

    # -- the end

    def summary(self) -> dict[str, Any]:
        """Return the statistics of all partitions as plain values.

        Returns
        -------
        dict
            The keys of `streamadapt.engine.summary.summarise`, and: ``run``: see `Tally.facts`,
            with ``all_may_be_refused``: whether `EngineSettings.max_bad_share` allows it;
            ``records``: number read by this run; ``lag``: partition -> records not yet processed,
            where known; ``out_of_order``: an example of an entry that came out of order.
        """
        runners = [*self.runners.values(), *self._lost.runners]
        run = self._tally.facts(runners, ended=self._ended)
        run["all_may_be_refused"] = self.settings.max_bad_share >= 1.0
        lag = {str(at): behind for at, behind in self._behind.items()}
        examples = [example for watch in self._time_watches.values() if (example := watch.example)]
        of_this_run = {
            "records": run["records"],
            "run": run,
            "lag": lag,
            "out_of_order": examples[0] if examples else "",
        }
        return summarise([runner.pipeline.stats for runner in self.runners.values()]) | of_this_run

    def _close(self) -> list[Exception]:
        """Close sinks before the source: the next owner of a partition must find all predictions.

        Return the errors.
        """
        errors = []
        runners = [*self.runners.values(), *self._lost.runners]
        for close in (
            self.sink.close,
            self.dead_letters.close,
            self.source.close,
            *(runner.close for runner in runners),
        ):
            try:
                self.closing = True
                close()
                self.closing = False
            except Exception as error:  # close the others all the same
                self.closing = False
                errors.append(error)
        return errors
