"""Answers what things cost."""

from typing import Annotated

from pydantic import BaseModel, Field

from runtime import Context, Event, Reject

Currency = Annotated[str, Field(pattern="^[A-Z]{3}$")]


class Settings(BaseModel):
    """Prices in euros, and what a euro is worth."""

    prices: dict[str, float]
    rates: dict[Currency, float]


class QuoteRequest(BaseModel):
    """What is wanted."""

    article: str = Field(max_length=64)
    pieces: int = Field(default=1, ge=1, le=1000)
    currency: Currency = "EUR"


class Quote(BaseModel):
    """What it costs."""

    article: str
    pieces: int
    currency: Currency
    total: float


class Article(BaseModel):
    """One article."""

    name: str
    price: float


async def quote(event: Event[QuoteRequest], ctx: Context) -> Quote:
    """What a number of pieces costs."""
    settings: Settings = ctx.settings
    wanted = event.data
    if wanted.article not in settings.prices:
        raise Reject("UNKNOWN_ARTICLE", "there is no such article", status=404)
    if wanted.currency not in settings.rates:
        raise Reject("UNKNOWN_CURRENCY", f"one of {', '.join(sorted(settings.rates))} is known")
    total = settings.prices[wanted.article] * wanted.pieces * settings.rates[wanted.currency]
    return Quote(
        article=wanted.article,
        pieces=wanted.pieces,
        currency=wanted.currency,
        total=round(total, 2),
    )


async def list_articles(event: Event[bytes], ctx: Context) -> list[Article]:
    """All articles, by name."""
    prices: dict[str, float] = ctx.settings.prices
    return [Article(name=name, price=price) for name, price in sorted(prices.items())]
