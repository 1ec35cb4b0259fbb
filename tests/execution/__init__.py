"""Tests of the process pool, its workers, process trees and notebook preparation."""
