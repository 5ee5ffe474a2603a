"""The manifest of prepared pairs, and the journal that an interrupted run resumes from."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

from repmamba.data.draw import Item, Settings, Skipped
from repmamba.data.pair_files import Made
from repmamba.durable import write_durable, write_errors
from repmamba.errors import JobChanged, SourceError, UsageError

MANIFEST, JOURNAL = "manifest.json", ".prepare.jsonl"
# The settings of a draw, which a manifest repeats.
DRAW_OPTIONS = {"count": "--count", "part": "--split", "drawn": "--drawn", "val": "--val"}


def read_manifest(manifest: Path) -> dict[str, Any]:
    """The content of a manifest. Raises SourceError if `prepare` did not write it."""
    try:
        listed: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
        for one in listed["images"]:
            Made(**one)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_a_manifest(manifest, error) from error
    return listed


def listed_items(listed: dict[str, Any], manifest: Path, source: Path) -> list[Item]:
    """The images of a manifest. Raises SourceError if an original is missing or outside source."""
    items = [
        Item(one["part"], one["name"], one["source"], one["source_sha256"])
        for one in listed["images"]
    ]
    for item in items:
        for text in (item.part, item.name, item.source):
            inside = isinstance(text, str) and not PurePosixPath(text).is_absolute()
            if not inside or ".." in PurePosixPath(text).parts or "\\" in text:
                raise SourceError(f"{manifest} lists {text!r:.80}, which leaves its folder.")
    missing = [item.source for item in items if not (source / item.source).is_file()]
    if missing:
        raise SourceError(
            f"{source} lacks {len(missing)} images of {manifest.name}, {missing[0]} among them."
        )
    return items


def listed_settings(settings: Settings, listed: dict[str, Any], manifest: Path) -> Settings:
    """The settings with the draw and the seed of a manifest.

    Raises UsageError if the settings have a draw or another benchmark, SourceError if the
    manifest's draw is not valid.
    """
    given = [option for key, option in DRAW_OPTIONS.items() if getattr(settings, key) is not None]
    if given:
        raise UsageError(
            f"{manifest} already determines the draw; leave out {', '.join(given)}, or the "
            "manifest."
        )
    if listed.get("benchmark") != settings.benchmark.name:
        raise UsageError(
            f"{manifest} is of the benchmark {listed.get('benchmark')!r:.40}, not "
            f"{settings.benchmark.name}; give the benchmark of the manifest."
        )
    try:
        draw: dict[str, Any] = {key: listed.get(key) for key in DRAW_OPTIONS}
        drawn = draw["drawn"] and tuple(draw["drawn"])
        return replace(settings, **draw | {"drawn": drawn, "seed": listed["seed"]})
    except (ValueError, KeyError, TypeError) as error:
        raise _not_a_manifest(manifest, error) from error


def changed_pixels(
    made: Sequence[Made], heading: dict[str, Any], listed: dict[str, Any] | None
) -> tuple[str, ...]:
    """The images whose pixels differ from those of a manifest with the same rule, by name."""
    if listed is None or any(
        listed.get(key) != heading[key] for key in ("scale", "degradations", "degrade", "rule")
    ):
        return ()
    before = {
        (one["part"], one["name"]): (one["gt_sha256"], one["lr_sha256"]) for one in listed["images"]
    }
    return tuple(
        PurePosixPath(one.part, one.name).as_posix()
        for one in made
        if before[one.part, one.name] != (one.gt_sha256, one.lr_sha256)
    )


class Journal:
    """The images already made: from the manifest of a finished run, or an interrupted run's lines.

    Raises JobChanged if target holds a result of other settings or other originals.
    """

    def __init__(self, target: Path, settings: Settings, items: Sequence[Item]) -> None:
        self.manifest = target / MANIFEST
        self.lines = target / JOURNAL
        self.heading = settings.record() | {"images_sha256": _items_digest(items)}
        self._lists: list[dict[str, Any]] = []
        if self.manifest.is_file():
            finished = self._read_json(self.manifest.read_text(encoding="utf-8"))
            self._check_same_job(finished)
            self._lists += finished["images"]
        if self.lines.is_file():
            started, *noted = self._whole_lines()
            self._check_same_job(started)
            self._lists += noted
        else:
            self._append(self.heading)

    def made(self) -> list[Made]:
        """The images made before, each once."""
        listed = [Made(**(one | {"cut": tuple(one["cut"])})) for one in self._lists]
        return list({(one.part, one.name): one for one in listed}.values())

    def add(self, made: Made) -> None:
        """Add an image whose files are complete."""
        self._append(asdict(made))

    def close(self, made: Sequence[Made], skipped: Sequence[Skipped]) -> Path:
        """Write the manifest durably, then remove the journal."""
        whole = self.heading | {
            "images": [asdict(one) for one in made],
            "skipped": [asdict(one) for one in skipped],
        }
        with write_errors(self.manifest):
            write_durable(self.manifest, (json.dumps(whole, indent=1) + "\n").encode())
            self.lines.unlink()
        return self.manifest

    def _check_same_job(self, found: dict[str, Any]) -> None:
        differing = [key for key in self.heading if found.get(key) != self.heading[key]]
        if differing:
            before, now = found.get(differing[0]), self.heading[differing[0]]
            raise JobChanged(
                f"{self.manifest.parent} holds pairs made with another {differing[0]} "
                f"({before!r:.40}, now {now!r:.40}); prepare into another folder."
            )

    def _append(self, line: dict[str, Any]) -> None:
        with write_errors(self.lines), self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _whole_lines(self) -> list[dict[str, Any]]:
        """The complete lines; an incomplete last one is removed from the file."""
        text = self.lines.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if not whole:
            whole = json.dumps(self.heading) + "\n"
        if whole != text:
            self.lines.write_text(whole, encoding="utf-8")
        return [self._read_json(line) for line in whole.splitlines()]

    def _read_json(self, text: str) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise JobChanged(
                f"The record of an earlier run in {self.manifest.parent} cannot be read ({error}); "
                "prepare into another folder."
            ) from error
        return value


def _items_digest(items: Sequence[Item]) -> str:
    listed = json.dumps([(item.part, item.name, item.source) for item in items])
    return hashlib.sha256(listed.encode()).hexdigest()


def _not_a_manifest(manifest: Path, error: Exception) -> SourceError:
    return SourceError(f"{manifest} is not a manifest written by prepare ({error!r:.80}).")
