"""What calls cost: the price table, the operator's own prices, and a row's cost by its price."""
