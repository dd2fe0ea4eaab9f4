"""Pages of many episodes, made without reading a file: one episode again and again, under changed identities."""

from __future__ import annotations

from pathlib import Path

from rollout_service.record.trajectory import Trajectory
from rollout_service.report.facts import Facts
from rollout_service.viewer import bundle, episode
from rollout_service.viewer.blocks import BlockWriter, packed, to_line
from rollout_service.viewer.index import FileNote, index_block
from rollout_service.viewer.token_record import Heads, token_record
from tests.support.trajectories import make_trajectory


def many_episodes(path: Path, count: int, base: Trajectory | None = None, group_size: int = 8) -> Path:
    """A page of so many episodes, in groups, with rewards of 0 and 1 in turn."""
    base = base or make_trajectory()
    facts, heads, parts = Facts.of(base), Heads(), list[str]()
    blocks = BlockWriter(parts.append)
    row = episode.row(base, 0, facts)
    talk = to_line(episode.talk(base, [], facts))
    tokens = to_line({"vocabulary": 0, "segments": token_record(base, heads)})
    rows = []
    for n in range(count):
        group, sample = divmod(n, group_size)
        (talk_block, talk_line), (token_block, token_line) = blocks.add("talk", talk), blocks.add("tokens", tokens)
        own = {"id": f"{group}-{sample}", "group": str(group), "sample": sample, "reward": float(n % 2), "file": 0}
        places = {"talk": talk_block, "talkLine": talk_line, "tokenBlock": token_block, "tokenLine": token_line}
        rows.append(row | own | places)
    blocks.close()
    parts.append(packed("heads", [to_line(head.tolist()) for head in heads.all]))
    parts.append(packed("vocabulary-0", [to_line({"ids": [], "texts": []})]))
    tokenizer = {"name": "none", "fingerprint": "", "problem": "No tokenizer."}
    index = index_block(rows, [FileNote("many.jsonl", count)], ["record"], [tokenizer])
    path.write_text(bundle.before_blocks(index) + "".join(parts) + bundle.AFTER_BLOCKS, encoding="utf-8")
    return path
