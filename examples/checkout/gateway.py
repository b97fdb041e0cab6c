"""Puts a product's page together from three answers that are asked for at the same time."""

import asyncio
from dataclasses import dataclass

from examples.checkout.catalogue import Price, Product, Query, Review, prices, products, reviews
from messaging import Bus

TIMEOUT = 30.0
"""Seconds: what a slow machine needs, too. A visitor would not wait so long."""


@dataclass(frozen=True)
class ProductPage:
    product: Product
    price: Price
    reviews: list[Review]


async def product_page(bus: Bus, sku: str) -> ProductPage | None:
    """The page, or None for a SKU that nobody sells. The first question that fails cancels the others."""
    query = Query(sku=sku)
    async with asyncio.TaskGroup() as questions:
        product = questions.create_task(bus.request(products, query, timeout=TIMEOUT))
        price = questions.create_task(bus.request(prices, query, timeout=TIMEOUT))
        opinions = questions.create_task(bus.request(reviews, query, timeout=TIMEOUT))
    found, costs = product.result(), price.result()
    if found is None or costs is None:
        return None
    return ProductPage(found, costs, opinions.result())
