"""Write the table of docs/recipes.md from the recipes themselves; a test checks that it is current.

Run as `python tools/make_recipe_docs.py`.
"""

from __future__ import annotations

from pathlib import Path

from onnxpress.exporter.recipe import Recipe, read_recipe, recipe_names

DOCUMENT = Path(__file__).parent.parent / "docs" / "recipes.md"

_BEGIN = "<!-- table: written by tools/make_recipe_docs.py -->\n"
_END = "<!-- end of table -->\n"
_TASKS = (
    "feature-extraction",
    "text-ranking",
    "text-classification",
    "zero-shot-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
)
_HEADER = (
    "| recipe | what for | language | architecture | parameters | licence |",
    "|---|---|---|---|---|---|",
)


def read_recipes() -> list[Recipe]:
    """All recipes, by task and then by name."""
    found = [recipe for name in recipe_names() if (recipe := read_recipe(name)) is not None]
    return sorted(found, key=lambda recipe: (_TASKS.index(recipe.task), recipe.name.lower()))


def render(page: str) -> str:
    """The page with its table made anew."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    sections = []
    recipes = read_recipes()
    for task in _TASKS:
        rows = [_row(recipe) for recipe in recipes if recipe.task == task]
        if rows:
            sections.append("\n".join([f"### {task}", "", *_HEADER, *rows]))
    table = "\n\n".join(sections)
    return f"{before}{_BEGIN}\n{table}\n\n{_END}{after}"


def _row(recipe: Recipe) -> str:
    cells = (
        f"[{recipe.name}](../models/{recipe.name}.toml)",
        f"{recipe.description} `{recipe.source.hub}`",
        recipe.language,
        recipe.model_type,
        f"{recipe.parameters_millions:g} M",
        recipe.licence,
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    DOCUMENT.write_text(render(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
