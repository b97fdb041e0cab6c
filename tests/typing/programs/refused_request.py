"""Wrong requests and replies: each marked line must be refused, and no other."""

from dataclasses import dataclass

from messaging import App, Bus, Endpoint


@dataclass
class Query:
    product: str


@dataclass
class Price:
    amount: int


quotes = Endpoint("prices.quote", Query, Price | None)
app = App("prices")


async def ask(bus: Bus) -> int:
    await bus.request(quotes, Price(1))  # error
    reply: Price = await bus.request(quotes, Query("p1"))  # error
    text: str | None = await bus.request(quotes, Query("p1"))  # error
    return reply.amount + len(text or "")


@app.respond(quotes)  # error
async def wrong_reply(query: Query) -> str:
    return query.product


@app.respond(quotes)  # error
def wrong_reply_in_a_thread(query: Query) -> int:
    return len(query.product)


@app.respond(quotes)  # error
async def wrong_query(query: Price) -> Price:
    return query
