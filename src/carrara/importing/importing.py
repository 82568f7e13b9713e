"""Import: any source into a data set, one report at a time, and again after a kill until it is complete."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import pkgutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from carrara import progress
from carrara.config import parse
from carrara.dataset import description, ranges
from carrara.dataset.class_numbers import CLASSES, remarks_on
from carrara.dataset.columns import KEPT, KINDS, LANGUAGE, UNSTATED
from carrara.dataset.dataset import Dataset, nearest_path, split_version
from carrara.dataset.description import ABOUT, FORMAT
from carrara.dataset.import_journal import is_left_out
from carrara.dataset.sentence import Sentence
from carrara.dataset.store import TABLE, UNFINISHED, store_at
from carrara.dataset.unfinished_imports import folder_of, sweep
from carrara.dataset.writer import Writer
from carrara.errors import UserError, refusal
from carrara.files import check_writable
from carrara.images.boxes import COLUMN
from carrara.importing.caption_language import Spoken, spoken_in
from carrara.importing.decode_pool import MANY, looked_at
from carrara.importing.download import fetched
from carrara.importing.options import Options, chosen_ranges
from carrara.importing.row import Rejected, Row
from carrara.importing.summary import Summary, kinds
from carrara.importing.table_rows import NOT_UTF8, is_text, lines_of, text_of
from carrara.terminal import console
from carrara.text import printable

if TYPE_CHECKING:
    from carrara.dataset.store import Store
    from carrara.importing.row import Survey


_NAMEABLE = ("label", "category", "group", "source", "licence", "url", "width", "height", "mode", "flags")
_SAMPLE = 2000  # captions that tell in which language a source is


@dataclass(frozen=True, kw_only=True)
class Progress(progress.Progress):
    """How far an import is, and what became of what it looked at; the last one has the summary."""

    kept: int
    rejected: int
    summary: Summary | None = None

    @classmethod
    def so_far(
        cls, done: int, total: int, kept: int, rejected: int, summary: Summary | None = None
    ) -> Progress:
        """After ``done`` of ``total`` pictures."""
        words = f"{kept} kept, {rejected} skipped"
        return cls.of(done, total, words, title="importing", kept=kept, rejected=rejected, summary=summary)


def importers() -> dict[str, Any]:
    """The importer modules by name: whatever lies in the folder."""
    package = importlib.import_module("carrara.importing.formats")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    return {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}


class Job(NamedTuple):
    """What is to be imported: by which importer, from where (``where`` is the source as it is noted), and how;
    ``spoken`` tells the languages of captions, which stay as given if it is None; ``sentence`` makes those of
    pictures that have none."""

    importer: str
    source: str
    where: str
    options: Options
    total: int
    spoken: Spoken | None = None
    sentence: Sentence | None = None


class Engine(Protocol):
    """Others than this process that look at the pictures; what they do ends in the table, and in the writer's notes."""

    name: str

    def survey(self, importer: str, source: str, options: Options) -> Survey:
        """As the importer's, of a source of which some parts may be damaged."""
        ...

    def run(self, job: Job, writer: Writer) -> Iterator[Progress]:
        """Brings all that is not in yet."""
        ...


def import_pictures(
    source: str | Path, destination: str | Path, *, engine: Engine | None = None, **options: Any
) -> Generator[Progress, None, Summary]:
    """Brings every picture of ``source`` into the data set ``destination``, made where there is none.

    ``source`` is what one of `importers` knows: a folder, an archive, a table …; options are the fields of Options.
    Yields progress; the last report holds the summary, which it returns. Killed at any moment and started again, it
    ends in the same table. Adding is by content: the same bytes are one row; words that changed in the source since
    its last import are changed in place. Raises UserError where the source or the destination cannot be used; then
    nothing was written.
    """
    source, store = str(source), store_at(destination)
    job, importer, digest = _job(
        source, store, destination, parse(Options, options, where="import options"), engine
    )
    retry = job.options.retry
    entry: dict[str, Any] = {"importer": job.importer, "source": job.where, "digest": digest}
    ticket = json.dumps(entry if engine is None else {**entry, "engine": engine.name})
    if not retry and (same := _same(store, entry)) and not folder_of(store, ticket).exists():
        return (yield from _nothing_to_do(store, job.total, same))
    check_writable(store.work)
    writer = Writer(store, ticket, source=job.where, held_out=job.options.held_out)
    try:
        if not retry and (
            same := _same(store, entry)
        ):  # by another process or machine meanwhile, or by one killed in its very last step
            writer.finish()
            return (yield from _nothing_to_do(store, job.total, same))
        if store.path != store.work:
            console.print(
                f"until it is complete, what tells how to continue it lies on this machine, in {writer.folder}",
                soft_wrap=True,
            )
        job = job._replace(spoken=_spoken(importer, source, job.options, job.total))
        if engine is not None:
            yield from engine.run(job, writer)
        else:
            yield from take_in(importer.rows(source, job.options), job, writer)
        summary = _completed_import(job, writer, entry)
        yield Progress.so_far(job.total, job.total, writer.added, writer.skipped, summary)
        return summary
    except (OSError, ValueError) as error:  # the disk is full, or the place cannot be reached any more
        if isinstance(error, ValueError) and "LanceError(IO)" not in str(error):
            raise
        raise UserError(
            f"the import into {store.path} had to stop: {refusal(error)}; the same `carrara data import` continues it"
        ) from None
    finally:
        writer.close()


def _job(
    source: str, store: Store, destination: str | Path, options: Options, engine: Engine | None
) -> tuple[Job, Any, str]:
    """What is to be done, without the languages of captions; the importer; and a digest of all that decides the rows.

    UserError where source or destination cannot be used.
    """
    name, importer = _importer(source)
    if name == "folder":
        _check_folder(Path(source))
    if options.count is not None and name != "scenes":
        raise UserError(f"a count is for 'scenes'; {source} is imported whole")
    _check_destination(store)
    begun = (
        description.about(store) is not None and store.has_table()
    )  # of one killed in its very last step not yet
    spans = chosen_ranges(options.range, Dataset.open(destination) if begun else None)
    options = options.model_copy(
        update={"range": tuple(f"{name}={low}..{high}" for name, (low, high) in spans.items())}
    )
    where = source if name == source else printable(str(Path(source).resolve()))
    sentence = _sentence(options, store, name, where)
    survey = engine.survey(name, source, options) if engine else importer.survey(source, options)
    return (
        Job(name, source, where, options, survey.total, None, sentence),
        importer,
        _digest(survey, options, sentence),
    )


def _completed_import(job: Job, writer: Writer, entry: Mapping[str, Any]) -> Summary:
    """Brings what was written into the table and its description; UserError where that was no picture at all."""
    store, sentence = writer.store, job.sentence
    if not writer.added and description.about(store) is None and not store.has_table():
        first = writer.rejected[0] if writer.rejected else None
        reason = f" (the first: {first['file']}: {first['reason']})" if first else ""
        importer = importers()[job.importer]
        again = "; --retry asks for them again" if getattr(importer, "DOWNLOADS", False) else ""
        raise UserError(f"no picture in {job.source} could be read{reason}{again}")
    writer.commit()
    spans = ranges.parse(job.options.range)
    own: dict[str, Any] = {ranges.KEY: {name: list(span) for name, span in spans.items()}} if spans else {}
    own |= {"caption": f"{sentence.language}: {sentence.text}"} if sentence is not None else {}
    own |= {"shares": sorted(writer.shares), "changed": bool(writer.before)}
    description.tell(store, {**entry, **own, "rejected": writer.skipped}, writer.rejected)
    writer.finish()
    with suppress(UserError):  # the import is complete; cleaning says what cannot be removed
        sweep(store, which=lambda other: _of_same_source(other, entry))
    counts = (writer.added, writer.updated, writer.duplicates)
    return replace(
        _summary(Dataset.open(store.path), counts, writer.rejected, unchanged=False),
        lost=writer.lost,
        replaced=writer.replaced,
        before=writer.before,
    )


def _sentence(options: Options, store: Store, importer: str, where: str) -> Sentence | None:
    """What makes captions for pictures that have none: as the options say, or as they did at an earlier import of this
    source, whose captions it would take back otherwise."""
    language = "en" if options.languages in ("detect", "keep") else options.languages
    text = options.caption
    if text is None:
        sources = (description.about(store) or {}).get("sources", [])
        same: dict[str, Any] = next(
            (s for s in sources if (s["importer"], s["source"]) == (importer, where)), {}
        )
        language, _, text = str(same.get("caption", "")).partition(": ")
        text = text if LANGUAGE.fullmatch(language) else ""
    return Sentence(text, _NAMEABLE, "an import", language) if text else None


def _digest(survey: Survey, options: Options, sentence: Sentence | None) -> str:
    """What is the same for imports that give the same rows."""
    stated = {"detect": "", "keep": " languages as given"}.get(
        options.languages, f" languages {options.languages}"
    )
    stated += "".join(f" {text}" for text in sorted(options.range))
    stated += f" {sentence.language}: {sentence.text}" if sentence is not None else ""
    return hashlib.sha256(f"{survey.digest} {options.held_out}{stated}".encode()).hexdigest()


def _spoken(importer: Any, source: str, options: Options, total: int) -> Spoken | None:
    """What captions from all over the source tell of the short ones; no picture is opened for it."""
    if options.languages != "detect":
        return None if options.languages == "keep" else Spoken(options.languages)

    def some() -> Iterator[str]:
        found = False
        with suppress(UserError):  # who brings the pictures in meets it again
            for number, item in enumerate(importer.rows(source, options)):
                text = item.captions.get(UNSTATED) if isinstance(item, Row) and not item.settled else None
                found = found or text is not None
                if text is not None and number % max(1, total // _SAMPLE) == 0:
                    yield text
                elif not found and number > _SAMPLE:  # it has none, or states their languages
                    return

    return spoken_in(some())


def _nothing_to_do(store: Store, total: int, same: dict[str, Any]) -> Generator[Progress, None, Summary]:
    summary = _summary(Dataset.open(store.path), (0, 0, 0), [], unchanged=True)
    left = same.get("rejected", 0)
    yield Progress.so_far(total, total, 0, left, summary := replace(summary, rejected=left))
    return summary


def _of_same_source(ticket: str, entry: Mapping[str, Any]) -> bool:
    """Whether an import was of this source as it was before."""
    other = json.loads(ticket)
    return all(other.get(name) == entry[name] for name in ("importer", "source"))


def take_in(items: Iterator[Row | Rejected], job: Job, writer: Writer) -> Iterator[Progress]:
    """Feeds the writer in the order of the source, several pictures being decoded at a time."""
    if getattr(importers()[job.importer], "DOWNLOADS", False):
        items = fetched(items, writer.store, job.where, writer.folder, job.options)
    pictures = 0
    for item in itertools.islice(items, writer.consumed):  # these were written before a kill
        pictures += isinstance(item, Row)
    items = _completed(items, ranges.parse(job.options.range), job.sentence)
    apart = job.total - writer.consumed >= MANY and getattr(importers()[job.importer], "LOOSE", False)
    for item, looked in looked_at(items, spoken=job.spoken, apart=apart):
        if isinstance(looked, Rejected):
            writer.reject(looked.source, looked.reason)
        else:
            for left in looked.left_out:  # before the picture, with which they are remembered
                writer.note({"file": left.source, "reason": left.reason})
            writer.add(looked.record)
        pictures += isinstance(item, Row)
        yield Progress.so_far(pictures, job.total, writer.added, writer.skipped)


def _completed(
    items: Iterator[Row | Rejected], spans: dict[str, ranges.Span], sentence: Sentence | None
) -> Iterator[Row | Rejected]:
    for item in items:
        if isinstance(item, Row):
            item.spans, item.sentence = spans, sentence
        yield item


def _importer(source: str) -> tuple[str, Any]:
    # Any folder is one of pictures unless it is something more particular; an empty name is none, not the current one.
    for name, module in sorted(importers().items(), key=lambda item: item[0] == "folder"):
        if source and module.matches(source):
            return name, module
    path = Path(source)
    expected = (
        "expected a folder of pictures, an archive, WebDataset, Parquet, COCO's JSON, a table of urls, "
        "or the word 'emoji' or 'scenes'"
    )
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".txt"):
        with text_of(open(path, "rb")) as text:
            if not any(map(is_text, itertools.islice(lines_of(text), 100))):
                raise UserError(f"{source} is {NOT_UTF8}")
    if source and path.exists():
        raise UserError(f"{source} is a file; {expected}")
    raise UserError(f"there is no source {source!r}; {expected}{nearest_path(path)}")


def _check_folder(source: Path) -> None:
    if (source / ABOUT).is_file() and (source / TABLE).is_dir():
        raise UserError(f"{source} is a Carrara data set already; expected a folder of pictures")


def _check_destination(store: Store) -> None:
    destination = store.path
    whole, version = split_version(destination)
    if version is not None and store_at(whole).has_table():
        raise UserError(f"pictures can only be added to the newest version: to {whole}")
    if destination != store.work:
        return
    if destination.exists() and not destination.is_dir():
        raise UserError(f"{destination} is a file; expected a folder for the data set, or a new name")
    inside = sorted(p.name for p in destination.iterdir()) if destination.is_dir() else []
    if TABLE not in inside and (others := [name for name in inside if name != UNFINISHED]):
        raise UserError(
            f"{destination} holds other things ({others[0]} …); "
            "expected a data set, an empty folder or a new name"
        )
    if TABLE not in inside:
        check_writable(destination)


def _same(store: Store, entry: dict[str, Any]) -> dict[str, Any] | None:
    """What is told of a complete import of the source as it is."""
    about = description.about(store)
    if about is None:
        return None
    if about.get("format") != FORMAT:
        Dataset.open(store.path)  # says what is wrong
    sources = about.get("sources", [])
    same = next((s for s in sources if s.items() >= entry.items()), None)
    return None if same is None or description.overtaken(same, sources) else same


def _summary(
    dataset: Dataset, counts: tuple[int, int, int], rejected: list[dict[str, str]], *, unchanged: bool
) -> Summary:
    added, updated, duplicates = counts
    skipped = list(filter(is_left_out, rejected))
    remarks = [r["reason"].removeprefix(KEPT) for r in rejected if r["reason"].startswith(KEPT)]
    return Summary(
        added,
        updated,
        duplicates,
        len(skipped),
        unchanged,
        pictures=len(dataset),
        held_out=dataset.table.count_rows(filter="split = 'held_out'"),
        captions={language: dataset.caption_counts[c] for language, c in dataset.captions.items()},
        labels=len(dataset.labels),
        beside={
            name: dataset.table.count_rows(filter=f"{name} IS NOT NULL")
            for name in (COLUMN, *KINDS)
            if name in dataset.columns
        },
        dataset=str(dataset.path),
        reasons=kinds(r["reason"] for r in skipped),
        remarks=kinds(remarks),
        spans=ranges.of(dataset.about),
        unstated=dataset.table.count_rows(filter=ranges.UNSTATED),
        on_maps=[] if unchanged else [line for name in CLASSES for line in remarks_on(dataset, name)],
    )
