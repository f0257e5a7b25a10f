mod deletion;
mod hosts;
mod ledger;
mod ownership;
mod protect;
mod quiet;
mod trouble;
