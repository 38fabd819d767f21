"""The frame of the report: one HTML document without scripts, fonts or pictures from elsewhere.

The content security policy makes the browser enforce that: whatever a text sample holds, nothing runs or is loaded.
"""

from string import Template

from looplm.report.style import STYLE

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header>
<h1>$title</h1>
$summary
</header>
$sections
<footer>Made by looplm. Losses are in nats per token; intervals are 95 % bootstrap intervals over documents.</footer>
</main>
</body>
</html>
""")


def page(title: str, summary: str, sections: list[str]) -> str:
    """Return the document; `title` is escaped already, like everything else that is given."""
    return PAGE.substitute(title=title, style=STYLE, summary=summary, sections="\n".join(sections))
