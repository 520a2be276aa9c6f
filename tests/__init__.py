"""The tests, and what measures and checks the package on other machines."""
