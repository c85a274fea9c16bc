"""What the ledger's benchmark is made of."""

from pathlib import Path

from serving.bench.own_books import own_books, without_keys
from serving.commands.serve import Prepared
from serving.contracts.ledger_settings import AuthSettings, LedgerSettings
from serving.contracts.settings import Settings


def test_a_benchmark_leaves_the_books_of_its_state_alone(tmp_path: Path) -> None:
    for folder in ("models", "ledger"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text(folder)
    with own_books(Prepared(Settings(state=tmp_path), {}, {}, {})) as booked:
        state = booked.settings.state
        assert (state / "models" / "file").read_text() == "models"
        assert not (state / "ledger").exists()
        (state / "ledger").mkdir()
        (state / "ledger" / "ledger.db").touch()
    assert not state.exists()
    assert [path.name for path in (tmp_path / "ledger").iterdir()] == ["file"]
    assert (tmp_path / "models" / "file").is_file()


def test_a_benchmark_asks_for_no_keys_and_keeps_off_a_shared_ledger() -> None:
    ledger = LedgerSettings.model_validate(
        {"url": "postgresql://a:b@h/d", "time_zone": "Europe/Rome"}
    )
    found = without_keys(Settings(auth=AuthSettings(mode="keys"), ledger=ledger))
    assert found.auth.mode == "off"
    assert (found.ledger.url, found.ledger.time_zone) == (None, "Europe/Rome")
