import re

from tests.conftest import Project


def test_the_report_is_self_contained(trained_once: Project) -> None:
    page = (trained_once.root / "reports" / "report.html").read_text(encoding="utf-8")
    addresses = re.findall(r'src="([^"]{10})', page)
    assert len(addresses) > 20
    assert set(addresses) == {"data:image"}
    assert not re.search(r"<script|<link|@import|url\(", page)
    test = trained_once.report("evaluation.json")["test"]
    assert f"<b>{test['accuracy']:.2%}</b>" in page
    assert page.count("<li><img") == min(test["errors"], 40)


def test_the_model_card_has_the_metrics_and_an_existing_picture(trained_once: Project) -> None:
    card = (trained_once.root / "reports" / "model_card.md").read_text(encoding="utf-8")
    test = trained_once.report("evaluation.json")["test"]
    assert f"| accuracy | {test['accuracy']:.2%} ({test['accuracy_low']:.2%} … {test['accuracy_high']:.2%}) |" in card
    assert "CC BY 4.0" in card
    (picture,) = re.findall(r"!\[.*\]\((.*)\)", card)
    assert (trained_once.root / "reports" / picture).is_file()
    listed = trained_once.succeed("git", "ls-files", "reports/pictures")
    assert listed.split() == ["reports/pictures/.gitignore", f"reports/{picture}"], "git tracks the picture in the card"
