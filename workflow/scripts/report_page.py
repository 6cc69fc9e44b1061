"""The page of the report from its template: nothing runs but its own scripts, nothing is loaded."""

import base64
from hashlib import sha256
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from bulk_words import of_unit
from packed import as_json
from report_tables import counted, digits, whole

# Found from here, for a module is imported from where it lies, and a script runs as a copy.
FOLDER = Path(__file__).parent.parent / "report"
OWN_SCRIPTS = ("page.js", "table.js", "map.js")
# Without its WebGL part, which makes code at run time; a page that allows that is a page less safe.
LIBRARY = ("bokeh.min.js", "bokeh-api.min.js")
PIXELS_A_POINT = 2  # of a figure's 300 dpi image, shown at half of its size


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def library_scripts() -> list[str]:
    """BokehJS from the installed package, whose Python part is not imported."""
    folder = Path(find_spec("bokeh").origin).parent / "server" / "static" / "js"
    return [(folder / name).read_text(encoding="utf-8") for name in LIBRARY]


def inlined(scripts: list[str]) -> tuple[list[Markup], str]:
    """Scripts as they stand in a page, and the policy that lets these run and no others.

    Raises ValueError where one holds what ends a script element.
    """
    if any("</script" in text.lower() or "<!--" in text for text in scripts):
        raise ValueError("a script of the report holds markup that would end it")
    hashes = [base64.b64encode(sha256(text.encode()).digest()).decode() for text in scripts]
    return [Markup(text) for text in scripts], " ".join(f"'sha256-{value}'" for value in hashes)


def embed_figure(path: str | Path, caption: str) -> dict:
    """A figure with what is said of it; its image has 256 colours, as a data URI.

    The file of the figure keeps all of its colours. The text for who cannot see it is in the file
    of the same name that ends in .txt.
    """
    path, content = Path(path), BytesIO()
    with Image.open(path) as image:
        width, height = image.size
        # No dithering: flat colours stay flat, and small.
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(content, format="PNG", optimize=True)
    return {
        "source": f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode('ascii')}",
        "width": round(width / PIXELS_A_POINT),
        "height": round(height / PIXELS_A_POINT),
        "caption": caption,
        "alt": path.with_suffix(".txt").read_text(encoding="utf-8").strip(),
    }


def render(content: dict) -> str:
    """The page; every value from the data is escaped, and a name the content lacks is an error."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    of_numbers = {function.__name__: function for function in (whole, counted, digits)}
    environment.filters |= {
        **of_numbers,
        "of_unit": of_unit,
        "in_script": lambda value: Markup(as_json(value)),
    }
    own = "\n".join(_read(name) for name in OWN_SCRIPTS)
    (*library, own), policy = inlined([*(library_scripts() if content["map"] else []), own])
    content |= {"library": library, "own_script": own, "policy": policy}
    content["style"] = Markup(_read("report.css"))
    return environment.from_string(_read("report.html")).render(content)
