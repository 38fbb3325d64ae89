"""MQTT topic filters: validation and matching."""

from functions.domain.topics import MAX_TOPIC_LENGTH


def validate_topic_filter(text: str) -> None:
    """Check a filter before it is stored.

    Raises:
        ValueError: `text` is not a topic filter; the message is one sentence for its author.
    """
    if not 0 < len(text) <= MAX_TOPIC_LENGTH:
        raise ValueError(f"a topic filter has 1 to {MAX_TOPIC_LENGTH} characters")
    if not text.isprintable() or " " in text:
        raise ValueError("a topic filter holds no spaces or control characters")
    *before, last = text.split("/")
    if "#" in before or (last != "#" and "#" in last) or any("#" in level for level in before):
        raise ValueError("# may only be the last level, alone; it matches all further levels")
    if any("+" in level and level != "+" for level in (*before, last)):
        raise ValueError("+ must be a whole level; it matches any one level")


def topic_matches(topic_filter: str, topic: str) -> bool:
    """Whether a valid filter matches a topic. `a/#` matches `a` too.

    Source: MQTT 3.1.1, section 4.7.
    """
    wanted = topic_filter.split("/")
    levels = topic.split("/")
    for place, level in enumerate(wanted):
        if level == "#":
            return True
        if place == len(levels):
            return False
        if level not in {"+", levels[place]}:
            return False
    return len(wanted) == len(levels)


__all__ = ["topic_matches", "validate_topic_filter"]
