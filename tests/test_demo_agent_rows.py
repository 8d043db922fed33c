"""demo/agent_rows.py: conversations in which the assistant calls, reads the results, and ends."""

import json

from data_utils.sources import load_rows
from demo.agent_rows import NO_TOOL, make_conversation
from demo.rows import make_row


def test_a_conversation_becomes_a_turn_that_calls_and_a_turn_that_ends(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(make_conversation(i)) + "\n" for i in range(50)))
    rows, dropped = load_rows(str(tmp_path / "rows.jsonl"))
    assert not dropped
    by_id = {row.id: row for row in rows}
    for index in range(50):
        demo = make_row(index, seed=0, unseen=False)
        gold = json.loads(demo["answers"])
        first = by_id[f"{demo['id']}/1"]
        assert first.query == demo["query"]
        assert json.loads(first.answers) == gold
        last_message = make_conversation(index)["messages"][-1]
        if not gold:
            assert last_message["content"] == NO_TOOL
            continue
        last = by_id[f"{demo['id']}/{2 + len(gold)}"]
        assert json.loads(last.answers) == []
        results = [line.split(": ")[-1].strip('"}') for line in last.query.splitlines() if line.startswith("tool: ")]
        assert len(results) == len(gold)
        assert all(result in last_message["content"] for result in results)
