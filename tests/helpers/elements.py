"""What a page is made of."""

import re
from html.parser import HTMLParser


class Elements(HTMLParser):
    """Collects tags with their attributes, ids, and tags that were never closed."""

    VOID = ("meta", "link", "br", "wbr", "img", "path", "use", "rect")

    def __init__(self, page):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def standing_alone(page):
    """Whether a page is whole, loads nothing and runs nothing."""
    elements = Elements(page)
    loading = [
        value
        for tag, attributes in elements.tags
        for key, value in attributes.items()
        if key in ("src", "href", "xlink:href", "data") and not value.startswith("#")
    ]
    active = [tag for tag, _ in elements.tags if tag in ("script", "link", "iframe")]
    imports = "@import" in page or re.search(r"url\((?!#)", page)
    return not (elements.open or loading or active or imports)
