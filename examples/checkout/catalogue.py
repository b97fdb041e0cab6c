"""Knows the products. Three endpoints answer three questions, and none knows who asks."""

from decimal import Decimal

from examples.checkout.orders import Money, Payload, Text
from messaging import App, Endpoint


class Product(Payload):
    sku: Text
    name: Text


class Price(Payload):
    amount: Money
    currency: Text


class Review(Payload):
    stars: int
    text: Text


class Query(Payload):
    sku: Text


products = Endpoint("catalogue.product", Query, Product | None)
prices = Endpoint("catalogue.price", Query, Price | None)
reviews = Endpoint("catalogue.reviews", Query, list[Review])

SHELF = {
    "TEA-EARL-100": ("Earl Grey, 100 g", "6.90"),
    "TEA-SENCHA-50": ("Sencha, 50 g", "8.50"),
    "COF-YIRG-250": ("Yirgacheffe beans, 250 g", "12.40"),
    "COF-DECAF-250": ("Decaf beans, 250 g", "11.90"),
    "MUG-BLUE": ("Mug, cobalt blue", "14.00"),
    "MUG-WHITE": ("Mug, white", "12.00"),
    "POT-IRON-1L": ("Cast-iron pot, 1 l", "59.00"),
    "FILTER-04-80": ("Paper filters, size 4, 80 pieces", "3.20"),
    "GRINDER-HAND": ("Hand grinder, steel burrs", "74.50"),
    "HONEY-LIME-500": ("Lime blossom honey, 500 g", "9.80"),
}
REVIEWS = {
    "MUG-BLUE": [Review(stars=5, text="Keeps the tea warm."), Review(stars=4, text="Bigger than it looks.")],
    "GRINDER-HAND": [Review(stars=5, text="Even grind, strong arms.")],
}

app = App("catalogue")


@app.respond(products)
async def product(query: Query) -> Product | None:
    found = SHELF.get(query.sku)
    return Product(sku=query.sku, name=found[0]) if found else None


@app.respond(prices)
async def price(query: Query) -> Price | None:
    found = SHELF.get(query.sku)
    return Price(amount=Decimal(found[1]), currency="EUR") if found else None


@app.respond(reviews)
async def reviews_of(query: Query) -> list[Review]:
    return REVIEWS.get(query.sku, [])
